"""Any other text-to-image pipeline that takes a prompt, generators and a number of steps: asked by its public call alone."""

import inspect
from typing import Any

import torch

from gift_generate.rendering.families.base import Batch, Family, Images, Pipeline, Size
from gift_shared.errors import ConfigError

NEEDED = ("prompt", "generator", "num_inference_steps")


def requires_more_than_text(pipeline_class: type) -> str | None:
    """What a pipeline class cannot do without besides a text, or what of a text-to-image call it lacks; None if it can be asked."""
    parameters = inspect.signature(pipeline_class.__call__).parameters
    lacking = [name for name in NEEDED if name not in parameters]
    if lacking:
        return f"its call knows no {', '.join(lacking)}"
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    wanted = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variable and name not in ("self", *NEEDED)
    ]
    return f"its call asks for {', '.join(wanted)}" if wanted else None


class Generic(Family):
    """Texts are encoded by the pipeline itself, as often as it is asked; nothing is saved."""

    half = "bfloat16"
    is_listed = False

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self._parameters = inspect.signature(pipeline.__call__).parameters
        self.takes_negative_prompt = "negative_prompt" in self._parameters
        self.takes_guidance = "guidance_scale" in self._parameters
        self.takes_size = {"height", "width"} <= self._parameters.keys()

    @property
    def own_size(self) -> Size | None:
        """The call's own default, else the denoiser's configuration."""
        if not self.takes_size:
            return None
        defaults = (self._parameters["height"].default, self._parameters["width"].default)
        if all(isinstance(side, int) for side in defaults):
            return defaults
        sample_size = getattr(getattr(self.denoiser, "config", None), "sample_size", None)
        factor = getattr(self.pipeline, "vae_scale_factor", None)
        if isinstance(sample_size, int) and isinstance(factor, int):
            return sample_size * factor, sample_size * factor
        return None

    def is_guided(self, guidance_scale: float) -> bool:
        """As far as can be known from outside."""
        return self.takes_guidance and guidance_scale > 1

    @property
    def reader(self) -> tuple[Any, int] | None:
        """The first tokenizer, where it knows its own limit."""
        tokenizer = getattr(self.pipeline, "tokenizer", None)
        limit = getattr(tokenizer, "model_max_length", None)
        return (tokenizer, limit) if isinstance(limit, int) and limit < 2**20 else None

    def images(self, batch: Batch) -> Images:
        """By the public call. Raises ConfigError if it answers with something else than images."""
        given: dict[str, Any] = {"guidance_scale": batch.guidance_scale, "use_resolution_binning": False, "clean_caption": False}
        given |= {"height": batch.size[0], "width": batch.size[1]} if self.takes_size else {}
        if any(batch.negative_prompts):
            given["negative_prompt"] = list(batch.negative_prompts)
        if batch.denoising_steps != 2:
            given["intermediate_timesteps"] = None  # of Sana-Sprint, whose default fits two steps alone
        given = {name: value for name, value in given.items() if name in self._parameters}
        result = self.pipeline(
            prompt=list(batch.captions),
            num_inference_steps=batch.denoising_steps,
            generator=batch.generators,
            output_type="np",  # of pixels 0-1, where some pipelines leave tensors as the decoder gave them
            **given,
        )
        pictures = getattr(result, "images", None)
        if pictures is None or getattr(pictures, "ndim", 0) != 4 or pictures.shape[-1] != 3:
            raise ConfigError(f"{type(self.pipeline).__name__} gives no images of three channels.")
        is_flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(batch.captions)
        return Images(torch.from_numpy(pictures).permute(0, 3, 1, 2), list(map(bool, is_flagged)))
