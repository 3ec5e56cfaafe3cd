"""How a model wants its pictures made square: open_clip's `preprocess_cfg`, read from a loaded model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from PIL import Image

from gift_shared.errors import ConfigError, unknown_name

Mode = Literal["shortest", "squash", "longest"]
INTERPOLATIONS = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}  # random is for training; open_clip evaluates so


@dataclass(frozen=True)
class ResizeSettings:
    """In open_clip's words.

    mode: `shortest` side to the square's and the centre cut out; `squash` both sides to it; `longest` side to it and the rest filled.
    """

    interpolation: str = "bicubic"
    mode: Mode = "shortest"
    fill_color: int = 0  # 0-255, beside a picture whose longest side was resized

    @property
    def filter(self) -> Image.Resampling:
        """Pillow's name of the interpolation."""
        return Image.Resampling.BILINEAR if self.interpolation == "bilinear" else Image.Resampling.BICUBIC


OPENAI = ResizeSettings()


def resize_settings(preprocess_cfg: Mapping[str, Any]) -> ResizeSettings:
    """What a model's `preprocess_cfg` says; what it leaves out is as for OpenAI's. Raises ConfigError for words that open_clip lacks."""
    interpolation = preprocess_cfg.get("interpolation") or OPENAI.interpolation
    mode = preprocess_cfg.get("resize_mode") or OPENAI.mode
    for kind, value, valid in (("interpolation", interpolation, tuple(INTERPOLATIONS)), ("resize_mode", mode, get_args(Mode))):
        if value not in valid:
            raise ConfigError(f"The model's preprocess_cfg: {unknown_name(kind, value, valid)}")
    return ResizeSettings(INTERPOLATIONS[interpolation], cast("Mode", mode), int(preprocess_cfg.get("fill_color") or 0))


def fit_and_fill(image: Image.Image, image_size: int, resize: ResizeSettings) -> Image.Image:
    """Longer side to image_size, the shorter in proportion, in the middle of a square of one colour: by open_clip itself."""
    import open_clip  # takes seconds, and few models want this

    to_unit_range = open_clip.image_transform(
        image_size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3,
        resize_mode="longest", interpolation=resize.interpolation, fill_color=resize.fill_color,
    )  # fmt: skip
    pixels = (to_unit_range(image) * 255).round().byte()  # as they were, since bytes over 255 are told apart in 32 bits
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
