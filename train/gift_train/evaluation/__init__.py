"""Accuracy on test sets, and the numbers computed from it."""
