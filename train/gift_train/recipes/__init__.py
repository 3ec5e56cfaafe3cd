"""Recipes: what a run computes, as TOML files, and their checked form."""
