"""What a family of pipelines has to say of itself. Knows the pipeline as an object of diffusers, and imports no diffusers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gift_shared.errors import ConfigError

MOST_CACHED_BYTES = 2**28  # of encoded texts on the device: 2,000 captions of SD v1.5 in half precision, 64 of FLUX

Pipeline = Any  # a pipeline of diffusers: its components are known at run time alone
Encoded = dict[str, Tensor]  # what a text became, each [1, ...], by the name under which the pipeline's call takes it
Size = tuple[int, int]  # height and width in pixels
StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]  # what a diffusers pipeline calls after each step


class Batch(NamedTuple):
    """Images to make together: a caption, a negative prompt ("": none) and a source of noise each."""

    captions: Sequence[str]
    negative_prompts: Sequence[str]
    generators: list[torch.Generator]
    guidance_scale: float
    denoising_steps: int
    size: Size
    step_end: StepEnd | None = None  # may be given where the family has `guidance_tensors`


class Images(NamedTuple):
    """Pictures [B, 3, H, W], 0-1, any dtype; for each whether the safety checker objected."""

    pictures: Tensor
    is_flagged: list[bool]


class Family(ABC):
    """One kind of pipeline: how a batch is asked of it. Raises ConfigError for a pipeline that lacks what its kind needs."""

    half: ClassVar[str] = "float16"  # the dtype of `auto` on a GPU
    is_listed: ClassVar[bool] = True  # False: known by its public call alone
    is_unet: ClassVar[bool] = False  # then the exact savings apply
    follows_authors: ClassVar[bool] = False  # multistep DPM-Solver below fifty steps
    takes_negative_prompt: bool = True
    takes_guidance: bool = True  # whether the number changes anything
    takes_size: bool = True
    # What a step's callback hands over that holds both halves of a guided batch; None where guidance cannot end early.
    guidance_tensors: ClassVar[tuple[str, ...] | None] = None
    needs: ClassVar[tuple[str, ...]] = ()  # components
    may_lack: ClassVar[tuple[str, ...]] = ()  # components that the pipeline does without, though diffusers asks for them

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        for name in self.needs:
            if getattr(pipeline, name, None) is None:
                raise ConfigError(
                    f"{pipeline.name_or_path} has no {name}, so it cannot read captions or make images; take a complete copy of it."
                )

    @property
    def denoiser(self) -> Any:
        """The U-Net or transformer."""
        return self.pipeline.unet if getattr(self.pipeline, "unet", None) is not None else getattr(self.pipeline, "transformer", None)

    @property
    @abstractmethod
    def own_size(self) -> Size | None:
        """The size it was trained for; None if the model does not say."""

    @property
    def size_step(self) -> int:
        """Heights and widths are multiples of it, pixels."""
        return 8

    @abstractmethod
    def is_guided(self, guidance_scale: float) -> bool:
        """Whether the denoiser is asked twice a step, so that there is something for a negative prompt to do."""

    @abstractmethod
    def images(self, batch: Batch) -> Images:
        """Make a batch. A picture follows from its own caption, negative prompt and generator."""

    def forget_texts(self) -> None:
        """Encode texts anew from here on: the weights that did have changed."""
        return

    @property
    def reader(self) -> tuple[Any, int] | None:
        """The tokenizer that reads most of a caption, and how many tokens of it; None if there is no telling."""
        return None


class EncodingFamily(Family):
    """A family whose texts are encoded apart from its images: each text once, alone, so that nothing depends on what came with it."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self._encoded: dict[str, Encoded] = {}

    def forget_texts(self) -> None:
        """Empty the cache."""
        self._encoded.clear()

    @abstractmethod
    def encode(self, text: str) -> Encoded:
        """Of one text."""

    def encode_negative(self, text: str) -> Encoded:
        """Of a negative prompt; "" is none."""
        return self.encoded(text)

    def encoded(self, text: str) -> Encoded:
        """As `encode`, from the cache if it is there."""
        return self.remembered(f"caption {text}", lambda: self.encode(text))

    def remembered(self, name: str, make: Callable[[], Encoded]) -> Encoded:
        """What was made under this name, made now if the cache has lost it."""
        if name not in self._encoded:
            made = make()
            num_bytes = sum(tensor.nbytes for tensor in made.values())
            while self._encoded and (len(self._encoded) + 1) * num_bytes > MOST_CACHED_BYTES:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[name] = made
        return self._encoded[name]

    def is_guided(self, guidance_scale: float) -> bool:
        """Above 1, where the model does not take guidance in as a number."""
        return guidance_scale > 1

    def images(self, batch: Batch) -> Images:
        """A call of the pipeline with the texts encoded."""
        tensors = _joined([self.encoded(caption) for caption in batch.captions])
        if self.is_guided(batch.guidance_scale):
            negatives = [self.encode_negative(text) for text in batch.negative_prompts]
            tensors |= {f"negative_{name}": tensor for name, tensor in _joined(negatives).items()}
        height, width = batch.size
        result = self.pipeline(
            **tensors,
            **self.extra_arguments(batch),
            height=height,
            width=width,
            guidance_scale=batch.guidance_scale,
            num_inference_steps=batch.denoising_steps,
            generator=batch.generators,
            output_type="pt",
        )
        is_flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(batch.captions)
        return Images(result.images, list(map(bool, is_flagged)))

    def extra_arguments(self, batch: Batch) -> dict[str, Any]:
        """What this kind of pipeline is told besides."""
        if self.guidance_tensors is None:
            return {}
        return {"callback_on_step_end": batch.step_end, "callback_on_step_end_tensor_inputs": list(self.guidance_tensors)}


def _joined(encoded: list[Encoded]) -> Encoded:
    return {name: torch.cat([one[name] for one in encoded]) for name in encoded[0]}


def size_of_latents(pipeline: Pipeline, sample_size: int | Sequence[int] | None) -> Size | None:
    """A size in latents, one number for a square, in pixels."""
    if sample_size is None:
        return None
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor
