"""What work costs its owner, what to ask for it, and what it may bring. Pure, in whole numbers."""
