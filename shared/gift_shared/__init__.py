"""The contract between the two stages: schemas, keys, manifests, the shard index. No torch, diffusers or open_clip here."""
