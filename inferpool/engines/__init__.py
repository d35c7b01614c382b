"""Adapters to engines: what runs a model. One contract, whatever is behind it."""
