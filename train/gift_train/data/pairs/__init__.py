"""Images with captions that people have on disk, found, checked and listed. How they are scored is `evaluation.retrieval`."""
