"""The run, top to bottom: set up, train task after task, evaluate, resume."""
