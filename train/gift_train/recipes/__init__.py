"""What a run computes: TOML files and their checked form."""
