"""Facts, not code: class names, templates, splits, orders and captions, as TOML and text files read by gift_shared."""
