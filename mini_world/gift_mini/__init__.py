"""The embedded mini world: small drawn tasks, a mini CLIP and a mini Stable Diffusion. Importing it loads nothing heavy."""
