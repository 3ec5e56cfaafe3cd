"""How each family of text-to-image pipelines is asked for a batch: its texts, its guidance, its size, and what can be saved."""
