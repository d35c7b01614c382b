"""Scripts that make the committed small models again from public data (group `train`)."""
