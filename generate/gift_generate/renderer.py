"""What turns captions into pixels: the Renderer protocol, the flat-colour renderer of dry runs, and the choice between them.

No torch and no diffusers here: those live in `stable_diffusion.py`, which is imported only when a real model is asked for.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from gift_shared.errors import ConfigError, unknown_name

FLAT_COLOR = "flat-color"
MINI_DRAWINGS = "mini-drawings"
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "float16", "bfloat16")
GENERATOR_DEVICES = ("cpu", "device")


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


class FlatColorRenderer:
    """Each caption's own colour, at once: dry runs of everything around the model."""

    def __init__(self, *, batch_size: int = 16, height: int = 64, width: int = 64) -> None:
        self.batch_size = batch_size
        self._height = height
        self._width = width

    @property
    def settings(self) -> dict[str, Any]:
        """The size is all there is to set."""
        return {"model": FLAT_COLOR, "height": self._height, "width": self._width}

    @property
    def machine(self) -> dict[str, str]:
        """A colour is the same on every machine."""
        return {}

    def adopt(self, settings: dict[str, Any]) -> None:
        """Nothing is left open: no memory limits a colour."""

    def overlong(self, captions: Iterable[str]) -> list[str]:
        """None: no text encoder takes part."""
        return []

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        """One colour between 32 and 223 a channel, so no picture counts as black."""
        return [Rendered(np.tile(self._color(job), (self._height, self._width, 1))) for job in jobs]

    def _color(self, job: RenderJob) -> np.ndarray:
        digest = hashlib.sha256(job.caption.encode()).digest()
        return np.array([32 + byte * 192 // 256 for byte in digest[:3]], dtype=np.uint8)


def open_renderer(options: ModelOptions) -> Renderer:
    """Load the model that the options name. Raises ConfigError before any image is made."""
    for kind, value, valid in (
        ("device", options.device.partition(":")[0], DEVICES),
        ("dtype", options.dtype, DTYPES),
        ("generator device", options.generator_device, GENERATOR_DEVICES),
    ):
        if value not in valid:
            raise ConfigError(unknown_name(kind, value, valid))
    if options.batch_size is not None and options.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, found {options.batch_size}.")
    if options.cpu_threads < 1:
        raise ConfigError(f"--threads must be at least 1, found {options.cpu_threads}.")
    for side in (options.height, options.width):
        if side is not None and (side < 8 or side % 8):
            raise ConfigError(f"--height and --width must be multiples of 8 pixels, found {side}.")
    if not 0 < options.guidance_until <= 1:
        raise ConfigError(f"--guidance-until must be above 0 and at most 1, found {options.guidance_until:g}.")
    if options.feature_interval < 1:
        raise ConfigError(f"--feature-interval must be at least 1, found {options.feature_interval}.")
    if options.feature_interval > 1 and options.is_compiled:
        raise ConfigError("--feature-interval and --compile do not go together: a compiled U-Net runs whole. Leave one of them out.")
    if options.model == FLAT_COLOR:
        return FlatColorRenderer(batch_size=options.batch_size or 16, height=options.height or 64, width=options.width or 64)
    if options.model == MINI_DRAWINGS:
        from gift_generate.drawn import DrawingRenderer

        return DrawingRenderer()
    try:
        from gift_generate.stable_diffusion import StableDiffusionRenderer  # torch and diffusers take seconds to import
    except ModuleNotFoundError as error:
        raise ConfigError(f"Rendering with {options.model} needs {error.name}: pip install 'gift-cl[generate]'.") from error
    return StableDiffusionRenderer(options)
