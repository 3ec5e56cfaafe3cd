"""How well a CLIP finds that the pictures of an output folder show their captions: what `gift-generate score` has done."""
