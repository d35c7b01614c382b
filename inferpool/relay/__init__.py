"""The relay: a forwarder for nodes that nobody can dial."""
