"""An open pool of machines for AI inference."""

__version__ = "0.1.0"
