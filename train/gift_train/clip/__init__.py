"""Load, encode, tokenize, classify. open_clip lives here alone."""
