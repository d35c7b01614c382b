"""What crosses the wire, as pure data: no clock, no network, no randomness."""
