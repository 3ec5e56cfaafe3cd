"""Many processes at one folder: whose share, who works, who lives."""
