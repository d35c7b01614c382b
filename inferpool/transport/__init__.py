"""Pipes to a node (or to any HTTP server): one seam, several pipes."""
