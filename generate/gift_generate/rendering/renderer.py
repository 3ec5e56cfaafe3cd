"""What turns captions into pixels: the Renderer, what it is asked for, and what it answers. No torch and no diffusers here."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gift_generate.rendering.reproducible import Reproducible


class OutOfMemory(Exception):
    """A batch that found too little memory. The message is what the library said of it.

    Not told to the user: the batch is made again in smaller pieces. A renderer raises it after it has let go of all that the batch took,
    the device's cached memory included, and only where fewer jobs at once need less.
    """


class RenderJob(NamedTuple):
    """One image to make; with the model it decides the pixels."""

    caption: str
    seed: int
    guidance_scale: float
    denoising_steps: int
    negative_prompt: str = ""  # "": the renderer's own, if it was given one
    height: int | None = None  # pixels; None: the renderer's own
    width: int | None = None
    adaptation: str = ""  # the source whose own LoRAs paint it, see Renderer.adaptation_of


class BatchConstants(NamedTuple):
    """What the jobs of one batch share, and whether any of them has a negative prompt of its own."""

    guidance_scale: float
    denoising_steps: int
    height: int | None = None
    width: int | None = None
    has_negative_prompt: bool = False


@dataclass(frozen=True)
class Rendered:
    """Pixels [H, W, 3], uint8, 0-255; whether the safety checker objected; whether the model's output was finite."""

    pixels: np.ndarray
    is_flagged: bool = False
    is_finite: bool = True


class Renderer(Reproducible):
    """Jobs in, pictures out. A picture depends on its job and on the size of its batch, never on its mates' order."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Jobs handed over at once, at most. Where it is left to the machine, the first reading finds it out."""

    def adaptation_of(self, source: str) -> str:
        """The source whose LoRAs paint captions of this one, "" for none. Rows of different ones never share a batch."""
        return ""

    def overlong(self, captions: Iterable[str]) -> list[str]:
        """The captions that the text encoder will cut; none where no text encoder takes part."""
        return []

    def check(self, constants: Sequence[BatchConstants]) -> list[str]:
        """Whether batches with these constants can be made; called before an output folder is bound. Raises ConfigError.

        Returns: lines for the user, such as the solver in use.
        """
        return []

    @abstractmethod
    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        """Render a batch whose jobs share guidance, steps, size and adaptation. Raises OutOfMemory if it is too large for the device."""
