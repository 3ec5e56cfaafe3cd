"""The l2 baseline: finetuning, with every weight held near where the task found it."""

from dataclasses import dataclass

from gift_train.clip.model import Backbone
from gift_train.methods.base import Method, TaskContext
from gift_train.methods.consolidation import Penalty
from gift_train.methods.registry import register


@register("l2")
class L2(Method):
    """L = L_task + weight * sum_i (theta_i - theta_{t-1,i})^2, a sum over all weights (METHODS 2.3). Departures: none."""

    summary = "Finetuning plus the squared distance to the previous task's weights."

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """`weight` multiplies the plain sum of squares."""

        weight: float

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        if self.config.weight != 0:
            self.theta = student.flat_weights()
            self.anchor = self.theta.copy()

    def penalty(self, student: Backbone) -> Penalty | None:
        if self.config.weight == 0:
            return None
        return Penalty(name="weight_distance", weight=self.config.weight, theta=self.theta, anchor=self.anchor)
