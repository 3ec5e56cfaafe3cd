"""Captions in, plan out: every image decided before a model is loaded."""
