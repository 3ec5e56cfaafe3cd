"""Images as the denoiser sees them: each encoded once, alone, so that a latent depends on nothing but its image."""

from typing import Any

import torch
from torch import Tensor

from gift_generate.adaptation.task_images import TaskToLearn
from gift_generate.rendering.families.base import Size

MOST_KEPT_BYTES = 2 * 2**30  # in memory of the host: 16,000 images of 512 x 512 pixels


class Latents:
    """Means and deviations of a task's latents under the image encoder, made when first asked for and kept as far as there is room."""

    def __init__(self, encoder: Any, task: TaskToLearn, size: Size) -> None:
        self._encoder = encoder
        self._task = task
        self._size = size
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._free = MOST_KEPT_BYTES

    def draw(self, indices: list[int], generator: torch.Generator) -> Tensor:
        """Latents [B, C, h, w] of these images, float32 on the encoder's device, drawn and scaled as the denoiser was trained on them."""
        moments = [self._moments(index) for index in indices]
        means, deviations = (torch.stack(parts) for parts in zip(*moments, strict=True))
        drawn = means + deviations * torch.randn(means.shape, generator=generator)
        config = self._encoder.config
        latents: Tensor = (drawn - (config.shift_factor or 0.0)) * config.scaling_factor
        return latents.to(self._encoder.device)

    @torch.no_grad()
    def _moments(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self._kept:
            return self._kept[index]
        pixels = self._task.pixels(index, *self._size).to(self._encoder.device)
        distribution = self._encoder.encode(pixels[None]).latent_dist
        moments = (distribution.mean[0].cpu(), distribution.std[0].cpu())
        num_bytes = sum(part.nbytes for part in moments)
        if num_bytes <= self._free:
            self._kept[index] = moments
            self._free -= num_bytes
        return moments
