"""Learning without Forgetting with a virtual vocabulary: random sentences in place of class prompts."""

from dataclasses import dataclass

from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource, TextSource
from gift_train.methods.base import LossTerms, Method, TaskContext, require_temperature
from gift_train.methods.image_distillation import ImageDistillation
from gift_train.methods.registry import register


@register("lwf_vr")
class LearningWithoutForgettingVr(Method):
    """L = L_task + D2(s f_T(x) g_T(R)', s f(x) g_T(R)') on the task's own images (METHODS 2.5).

    R = 1,000 strings of random tokens, drawn once per task. The teacher's text features stand on both sides, so only the
    image tower is distilled (B3).
    Departures: the teacher's features are computed once per task, which changes nothing.
    """

    summary = "Distils the previous model on the new task's own images and random sentences."
    replay = ReplaySource.TASK
    texts = TextSource.RANDOM

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """`distill_weight` multiplies both directions; `temperature` has no unit."""

        distill_weight: float
        temperature: float

        def __post_init__(self) -> None:
            require_temperature(self.temperature)

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        weight, temperature = self.config.distill_weight, self.config.temperature
        self.distillation = ImageDistillation(student.frozen_copy(), context, weight=weight, temperature=temperature)

    def replay_loss(self, student: Backbone, batch: ReplayBatch) -> LossTerms:
        return self.distillation.terms(student, batch)
