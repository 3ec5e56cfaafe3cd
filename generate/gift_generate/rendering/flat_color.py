"""One colour a caption: dry runs of everything around the model."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gift_generate.rendering.renderer import Rendered, Renderer, RenderJob

FLAT_COLOR = "flat-color"


class FlatColorRenderer(Renderer):
    """Each caption's own colour, at once: dry runs of everything around the model."""

    batch_size = 16  # no memory limits a colour

    def __init__(self, *, batch_size: int = 16, height: int = 64, width: int = 64) -> None:
        self.batch_size = batch_size
        self._height = height
        self._width = width

    @property
    def settings(self) -> dict[str, Any]:
        """The size is all there is to set."""
        return {"model": FLAT_COLOR, "height": self._height, "width": self._width}

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        """One colour between 32 and 223 a channel, so no picture counts as black."""
        return [Rendered(np.tile(self._color(job), (job.height or self._height, job.width or self._width, 1))) for job in jobs]

    def _color(self, job: RenderJob) -> np.ndarray:
        digest = hashlib.sha256(job.caption.encode()).digest()
        return np.array([32 + byte * 192 // 256 for byte in digest[:3]], dtype=np.uint8)
