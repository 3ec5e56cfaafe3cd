"""A run for people who write Python: what its folder says as tables, and its model."""
