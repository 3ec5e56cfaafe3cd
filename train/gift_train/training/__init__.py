"""The run, top to bottom: set up, train, save, evaluate, resume."""
