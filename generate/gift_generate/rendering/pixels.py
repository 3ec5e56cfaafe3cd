"""Pictures as bytes, made on whatever device they are on."""

import torch
from torch import Tensor


def as_bytes(pictures: Tensor) -> Tensor:
    """0-1, any dtype -> uint8, rounded as diffusers rounds for PIL images; what is not a number is black."""
    return (pictures.float().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)
