"""Real uses end to end: data, a small model, its figures, and decisions bought from the pool."""
