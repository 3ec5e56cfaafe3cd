"""The paper's tables: which runs one needs, which are there, running what is missing, and ours beside the published numbers."""
