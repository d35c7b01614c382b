"""The whole network in one process from one seed: production code, virtual time, drawn faults."""
