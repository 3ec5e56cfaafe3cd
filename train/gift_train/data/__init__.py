"""Datasets, transforms, batches, and the images that are replayed."""
