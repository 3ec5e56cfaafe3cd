"""The output folder: shards and their rows, the index, what is done and whether every byte is right."""
