"""How pixels become file contents: the options of the command and the encoder itself. The imaging library waits for the first image."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gift_shared.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    import numpy as np

IMAGE_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
LONGEST_SIDE = {"jpg": 65_500, "webp": 16_383}  # pixels that a format can hold


@dataclass(frozen=True)
class ImageEncoder:
    """Pixels [H, W, 3] uint8 -> file contents. Quality 1-100 is JPEG's and WebP's; PNG is lossless. Raises ConfigError."""

    image_format: Annotated[str, typer.Option(help="jpg, png or webp.")] = "jpg"
    # The imaging library's default, which the authors' images have.
    quality: Annotated[int, typer.Option("--jpeg-quality", help="Of jpg and webp.")] = 75

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

    def __call__(self, pixels: "np.ndarray") -> tuple[bytes, str]:
        """File contents and suffix."""
        from PIL import Image

        buffer = io.BytesIO()
        options = {} if self.image_format == "png" else {"quality": self.quality}
        Image.fromarray(pixels).save(buffer, IMAGE_FORMATS[self.image_format], **options)
        return buffer.getvalue(), f".{self.image_format}"
