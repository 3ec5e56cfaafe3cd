"""Stage 1: captions in, shards of synthetic images out. Knows nothing of CLIP or of training."""
