"""Captions in, pixels out. torch and diffusers live here alone."""
