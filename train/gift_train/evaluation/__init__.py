"""Accuracy on test sets, and the numbers of continual learning computed from it."""
