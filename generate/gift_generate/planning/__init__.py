"""Captions -> plan: every image is decided before a model is loaded. Pure: no model, no pixels."""
