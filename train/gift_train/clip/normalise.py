"""Bytes to the numbers a CLIP reads, on the model's device."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Normalise:
    """Bytes -> (pixel / 255 - mean) / std, float32: the value of torchvision's ToTensor and Normalize, to the last bit.

    mean, std: [3], on the 0-1 scale. All operands are tensors on the images' device: a quotient by a Python number is a product with
    its reciprocal on a GPU, which rounds differently. On a CPU the 256 values of a channel are looked up: one pass by one thread, since
    torch's threads wait for each other where loader processes have taken their cores (measured: 40 times as long on two).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).view(3, 1, 1)
        self.white = torch.tensor(255, dtype=torch.float32, device=device)
        self._values: NDArray[np.float32] | None = None  # [3, 256]
        if device.type == "cpu":
            self._values = self._computed(torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)).view(3, 256).numpy()

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] in any memory format -> float32, contiguous."""
        if self._values is None:
            return self._computed(images)
        pixels, floats = images.numpy(), np.empty(images.shape, dtype=np.float32)
        for channel, values in enumerate(self._values):
            np.take(values, pixels[:, channel], out=floats[:, channel], mode="clip")  # no byte is out of bounds; "raise" would copy
        return torch.from_numpy(floats)

    def _computed(self, images: Tensor) -> Tensor:
        return images.contiguous().float().div_(self.white).sub_(self.mean).div_(self.std)
