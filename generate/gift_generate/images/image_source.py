"""What became of a plan row, whoever made the picture, and how pixels become file contents."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from gift_shared.errors import ConfigError, unknown_name
from gift_shared.schema import SampleStatus

PlanRow = dict[str, Any]  # one row of PLAN_SCHEMA
IMAGE_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
LONGEST_SIDE = {"jpg": 65_500, "webp": 16_383}  # pixels that a format can hold


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An encoded image, or why there is none. `content` and sizes in pixels are None unless the status is ok."""

    status: SampleStatus
    message: str
    attempts: int
    used_seed: int
    content: bytes | None = None
    suffix: str | None = None  # ".jpg", ".png" or ".webp"
    width: int | None = None
    height: int | None = None


class ImageSource(Protocol):
    """Where a shard's pictures come from: a renderer, or files made elsewhere."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the bytes besides the plan."""

    def adopt(self, settings: dict[str, Any]) -> None:
        """Take over, from the settings that a folder is bound to, what was left open here, such as an automatic batch size."""

    @property
    def machine(self) -> dict[str, str]:
        """Hardware and versions, for the record."""

    def warnings(self, captions: Sequence[str]) -> list[str]:
        """What the user should know about these captions before the work starts."""

    def pictures(self, rows: Sequence[PlanRow], on_images: Callable[[int], None]) -> list[Picture]:
        """The pictures of one shard in row order; `on_images` hears of every row that is settled."""


@dataclass(frozen=True)
class ImageEncoder:
    """Pixels [H, W, 3] uint8 -> file contents. Quality 1-100 is JPEG's and WebP's; PNG is lossless."""

    image_format: str = "jpg"
    quality: int = 75  # the imaging library's default, which the authors' images have

    def __post_init__(self) -> None:
        if self.image_format not in IMAGE_FORMATS:
            raise ConfigError(unknown_name("image format", self.image_format, IMAGE_FORMATS))
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"--jpeg-quality must be between 1 and 100, found {self.quality}.")

    def require_room(self, *sides: int | None) -> None:
        """Raises ConfigError if the format cannot hold images with a side of that many pixels; None: not known yet."""
        longest = max((side for side in sides if side is not None), default=0)
        most = LONGEST_SIDE.get(self.image_format, longest)
        if longest > most:
            raise ConfigError(f"--image-format {self.image_format} holds at most {most} pixels a side, found {longest}. Give png.")

    def __call__(self, pixels: np.ndarray) -> tuple[bytes, str]:
        """File contents and suffix."""
        buffer = io.BytesIO()
        options = {} if self.image_format == "png" else {"quality": self.quality}
        Image.fromarray(pixels).save(buffer, IMAGE_FORMATS[self.image_format], **options)
        return buffer.getvalue(), f".{self.image_format}"
