"""CLIP: load, encode, tokenize, classify. The only room that imports open_clip."""
