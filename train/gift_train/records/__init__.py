"""A run's folder: what is written while it goes on, and read back by resume, watch and report."""
