"""What turns captions into pixels: the Renderer protocol, and what its options are. No torch and no diffusers here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np


class RenderJob(NamedTuple):
    """One image to make; with the model it decides the pixels."""

    caption: str
    seed: int
    guidance_scale: float
    denoising_steps: int


@dataclass(frozen=True)
class Rendered:
    """Pixels [H, W, 3], uint8, 0-255; whether the safety checker objected; whether the model's output was finite."""

    pixels: np.ndarray
    is_flagged: bool = False
    is_finite: bool = True


class Renderer(Protocol):
    """Jobs in, pictures out. A picture depends on its job and on the size of its batch, never on its mates' order."""

    @property
    def batch_size(self) -> int:
        """Jobs handed over at once, at most. Where it is left to the machine, the first reading finds it out."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the pixels besides the jobs; an output folder holds images of one setting only."""

    @property
    def machine(self) -> dict[str, str]:
        """Hardware and versions, for the record."""

    def adopt(self, settings: dict[str, Any]) -> None:
        """Take over what was left open, which is the batch size if anything, from the settings that a folder is bound to."""

    def overlong(self, captions: Iterable[str]) -> list[str]:
        """The captions that the text encoder will cut."""

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        """Render a batch whose jobs share guidance scale and denoising steps."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it runs. Sizes in pixels; None = the model's own."""

    model: str
    device: str = "auto"
    dtype: str = "auto"  # float16 on a GPU, float32 elsewhere
    batch_size: int | None = 16  # None: the largest that the machine holds
    scheduler: str | None = None  # None: the checkpoint's own, multistep DPM-Solver below 50 steps
    height: int | None = None
    width: int | None = None
    cpu_threads: int = 1  # of a model that runs on the CPU: another number changes last bits, so it must not follow the launcher
    generator_device: str = "cpu"  # where the noise is drawn: the same seed gives other noise on a GPU
    is_compiled: bool = False  # U-Net and image decoder through torch.compile: other last bits
    decodes_one_by_one: bool = False  # the image decoder takes one latent at a time: less memory
    guidance_until: float = 1.0  # share of the steps that are guided, from the first: an approximation below 1
    feature_interval: int = 1  # the whole U-Net runs at every n-th step: an approximation above 1
