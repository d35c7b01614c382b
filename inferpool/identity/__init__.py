"""Keys: who may sign what, how keys are kept, and how signatures are made and checked."""
