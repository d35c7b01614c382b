"""Measurements: each is a command that prints what it measured, as ratios in one run."""
