"""Where the pictures of a shard come from, and what became of each of its plan rows. Knows no source."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gift_generate.rendering.renderer import BatchConstants
from gift_generate.rendering.reproducible import Reproducible
from gift_shared.schema import SampleStatus

PlanRow = dict[str, Any]  # one row of PLAN_SCHEMA


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


class ImageSource(Reproducible):
    """Where a shard's pictures come from: a renderer, or files made elsewhere."""

    def warnings(self, captions: Sequence[str]) -> list[str]:
        """What the user should know about these captions before the work starts; nothing unless a source says otherwise."""
        return []

    def check(self, constants: Sequence[BatchConstants]) -> list[str]:
        """Before a folder is bound: whether images with these constants can be made, and lines for the user. Raises ConfigError."""
        return []

    @abstractmethod
    def pictures(self, rows: Sequence[PlanRow], on_images: Callable[[int], None]) -> list[Picture]:
        """The pictures of one shard in row order; `on_images` hears of every row that is settled."""
