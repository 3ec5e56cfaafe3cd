"""What the safety checker is shown, made where the pictures are: the same numbers, without a way over the host for every picture."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gift_generate.rendering.pixels import as_bytes

Checked = tuple[Tensor, list[bool]]


def show_on_device(pipeline: Any) -> None:
    """Let a pipeline with a Stable Diffusion safety checker prepare pictures for it on their device.

    diffusers makes a PIL image of every picture, and the checker's feature extractor resizes each on the CPU. That extractor also takes
    bytes on a device, where it resizes the batch at once. On a CPU the numbers are the same to the last bit; a GPU resizes in floats and
    rounds, so that a pixel may be one level of 255 off. Where the extractor is of Pillow's make (no torchvision), nothing is changed.
    """
    extractor = getattr(pipeline, "feature_extractor", None)
    is_known = type(getattr(pipeline, "safety_checker", None)).__name__ == "StableDiffusionSafetyChecker"
    if is_known and getattr(extractor, "backend", None) == "torchvision":
        pipeline.run_safety_checker = partial(_checked, pipeline)


def _checked(pipeline: Any, image: Tensor, device: torch.device, dtype: torch.dtype) -> Checked:
    """As the pipeline's own `run_safety_checker`: `image` [B, 3, H, W] as decoded; those it objects to are black in the answer."""
    postprocess: Callable[..., Tensor] = pipeline.image_processor.postprocess
    pictures = as_bytes(postprocess(image, output_type="pt"))
    shown = pipeline.feature_extractor(list(pictures), return_tensors="pt", device=device)
    answer: Checked = pipeline.safety_checker(images=image, clip_input=shown.pixel_values.to(dtype))
    return answer
