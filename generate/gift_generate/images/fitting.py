"""Batches that find too little memory are made in pieces, so that unequal devices can work on one folder."""

from collections.abc import Sequence

from gift_generate.rendering.renderer import OutOfMemory, Rendered, Renderer, RenderJob
from gift_shared.errors import MachineError


class FittingBatches:
    """A renderer that is given its batches whole until one finds too little memory, and from then on in pieces that fit.

    Which rows share a batch stays as it was, and so does all that is recorded; a picture made in another number may differ in its last
    bits.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self.split_batch: int | None = None  # jobs in a piece; None: batches are whole

    @property
    def batch_size(self) -> int:
        """The renderer's: what batches are cut by, split or not."""
        return self._renderer.batch_size

    def adaptation_of(self, source: str) -> str:
        """The renderer's."""
        return self._renderer.adaptation_of(source)

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        """As `Renderer.render`. Raises MachineError if not even one picture fits."""
        rendered: list[Rendered] = []
        while len(rendered) < len(jobs):
            piece = jobs[len(rendered) : len(rendered) + (self.split_batch or len(jobs))]
            try:
                rendered += self._renderer.render(piece)
            except OutOfMemory as error:
                if len(piece) == 1:
                    raise MachineError(
                        f"Not even one image fits in this device's memory ({error}). Let a larger device make the rest; "
                        "--vae-slices and a smaller --height and --width need less, and another --out."
                    ) from error
                self.split_batch = -(-len(piece) // 2)
            # The next try is made out here: while an error is handled, it holds what the failed one took.
        return rendered
