"""The output folder: shards, rows, index; what is done and right."""
