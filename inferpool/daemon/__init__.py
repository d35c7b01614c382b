"""Processes: each role is built from configuration and keys here, served, and ended cleanly."""
