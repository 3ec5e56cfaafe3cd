"""Captions -> pixels: the renderers. torch and diffusers live in here and nowhere else in stage 1."""
