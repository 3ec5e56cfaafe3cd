"""Pictures that a renderer makes: rendered, screened, tried again, encoded."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.first_images import FirstImages
from gift_generate.images.fitting import FittingBatches
from gift_generate.images.image_source import KEEPS_NOTHING, BatchStore, ImageSource, Picture, PlanRow
from gift_generate.images.screening import judge_first_attempts, render_screened
from gift_generate.rendering.renderer import BatchConstants, Renderer
from gift_shared.console import some_of
from gift_shared.errors import ConfigError

CAPTIONS_AT_ONCE = 10_000


class RenderedImages(ImageSource):
    """The images that a renderer makes of a plan's rows."""

    def __init__(self, renderer: Renderer, encoder: ImageEncoder, max_attempts: int) -> None:
        if max_attempts < 1:
            raise ConfigError(f"--max-attempts must be at least 1, found {max_attempts}.")
        self._renderer = renderer
        self._encoder = encoder
        self._max_attempts = max_attempts
        self._batches = FittingBatches(renderer)
        self._spread: Sequence[PlanRow] = ()
        self._first = FirstImages(lambda: judge_first_attempts(self._batches, self._spread))

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

    def warnings(self, captions: Iterable[str]) -> list[str]:
        """Which captions the text encoder will cut; they are looked at some at a time, since millions of token lists fill a memory."""
        rest, overlong = iter(captions), dict[str, None]()
        while some := list(islice(rest, CAPTIONS_AT_ONCE)):
            overlong |= dict.fromkeys(self._renderer.overlong(some))
        if not overlong:
            return []
        return [f"{len(overlong)} captions are longer than the tokenizer's context and will be cut: {some_of(list(overlong))}"]

    def check(self, constants: Sequence[BatchConstants]) -> list[str]:
        """What the renderer says to them."""
        return self._renderer.check(constants)

    def expect(self, spread: Sequence[PlanRow]) -> None:
        """Rows to try if nothing usable comes out at first."""
        self._spread = spread

    @property
    def split_batch(self) -> int | None:
        """Images rendered at once since a whole batch found too little memory."""
        return self._batches.split_batch

    def pictures(self, rows: Sequence[PlanRow], on_images: Callable[[int], None], batches: BatchStore = KEEPS_NOTHING) -> list[Picture]:
        """The pictures of one shard, in row order. Raises ConfigError if a row's size is more than the image format holds."""
        self._encoder.require_room(*(row[side] for row in rows for side in ("render_height", "render_width")))
        pictures = render_screened(self._batches, self._encoder, rows, self._max_attempts, on_images, batches, self._first.made)
        self._first.finished([(picture.status, picture.message) for picture in pictures])
        return pictures
