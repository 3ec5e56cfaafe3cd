"""The mini world's own drawings in place of generated pictures: the control that tells the generator's share of a result.

With perfect pictures everything else of a run stays as it is, so the difference between the two is what better pictures would buy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gift_generate.rendering.renderer import Rendered, Renderer, RenderJob
from gift_shared.errors import ConfigError
from gift_shared.manifests import Manifests

MINI_DRAWINGS = "mini-drawings"


class DrawingRenderer(Renderer):
    """Draws the class that a mini-world caption names, in the style the mini Stable Diffusion learned from."""

    batch_size = 64  # nothing is shared within a batch; the number only sets how often progress is told

    def __init__(self) -> None:
        manifests = Manifests()
        order = manifests.order("mini")
        self._classes = {
            caption: (source, class_name)
            for source in (order.pretraining_source, *order.tasks)
            for caption, class_name in zip(manifests.task(source).first_template_captions, manifests.task(source).class_names, strict=True)
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing to set."""
        return {"model": MINI_DRAWINGS}

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        """Raises ConfigError for a caption that is not a class name of the mini world in its first template."""
        from gift_mini.drawing import draw_web

        pictures = []
        for job in jobs:
            if job.caption not in self._classes:
                raise ConfigError(f"--model {MINI_DRAWINGS} cannot draw {job.caption!r}: it knows the mini world's class names only.")
            pictures.append(Rendered(np.asarray(draw_web(*self._classes[job.caption], job.seed).convert("RGB"))))
        return pictures
