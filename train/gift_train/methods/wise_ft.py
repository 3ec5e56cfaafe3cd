"""WiSE-FT: finetune, then step part of the way back."""

from dataclasses import dataclass
from typing import Literal

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.methods.base import Method, TaskContext
from gift_train.methods.consolidation import interpolate
from gift_train.methods.registry import register


@register("wise_ft")
class WiseFt(Method):
    """Train as finetune; hand on alpha theta + (1 - alpha) theta_anchor (arXiv 2109.01903; METHODS 2.7). Departures: none."""

    summary = "Finetuning, then interpolation with the weights the task started from."

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """alpha: share of the trained weights, fraction. anchor: the table's row steps back to the `previous` weights (B2)."""

        alpha: float
        anchor: Literal["previous", "initial"]

        def __post_init__(self) -> None:
            if not 0 <= self.alpha <= 1:
                raise ConfigError(f"alpha is a fraction from 0 to 1, found {self.alpha}.")

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        self.anchor = context.initial_weights if self.config.anchor == "initial" else student.weights_copy()

    def end_task(self, student: Backbone) -> None:
        student.load_weights(interpolate(self.anchor, student.weights(), self.config.alpha))
