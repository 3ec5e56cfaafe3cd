"""Pictures that a renderer makes: rendered, screened, tried again, encoded."""

from collections.abc import Callable, Sequence
from typing import Any

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.image_source import ImageSource, Picture, PlanRow
from gift_generate.images.screening import render_screened
from gift_generate.rendering.renderer import BatchConstants, Renderer
from gift_shared.console import some_of
from gift_shared.errors import ConfigError


class RenderedImages(ImageSource):
    """The images that a renderer makes of a plan's rows."""

    def __init__(self, renderer: Renderer, encoder: ImageEncoder, max_attempts: int) -> None:
        if max_attempts < 1:
            raise ConfigError(f"--max-attempts must be at least 1, found {max_attempts}.")
        self._renderer = renderer
        self._encoder = encoder
        self._max_attempts = max_attempts

    @property
    def settings(self) -> dict[str, Any]:
        """The renderer's, and how batches, retries and files are made: each of them can change bytes."""
        return {
            **self._renderer.settings,
            "batch_size": self._renderer.batch_size,
            "max_attempts": self._max_attempts,
            "image_format": self._encoder.image_format,
            "quality": self._encoder.quality,
        }

    def adopt(self, settings: dict[str, Any]) -> None:
        """Let the renderer take over what it has left open."""
        self._renderer.adopt(settings)

    @property
    def machine(self) -> dict[str, str]:
        """The renderer's hardware and versions."""
        return self._renderer.machine

    def warnings(self, captions: Sequence[str]) -> list[str]:
        """Which captions the text encoder will cut."""
        overlong = self._renderer.overlong(captions)
        if not overlong:
            return []
        return [f"{len(overlong)} captions are longer than the tokenizer's context and will be cut: {some_of(overlong)}"]

    def check(self, constants: Sequence[BatchConstants]) -> list[str]:
        """What the renderer says to them."""
        return self._renderer.check(constants)

    def pictures(self, rows: Sequence[PlanRow], on_images: Callable[[int], None]) -> list[Picture]:
        """The pictures of one shard, in row order."""
        return render_screened(self._renderer, self._encoder, rows, self._max_attempts, on_images)
