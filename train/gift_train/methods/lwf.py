"""Learning without Forgetting, as CLIP's continual-learning benchmark defines it."""

from dataclasses import dataclass

from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource, TextSource
from gift_train.methods.base import LossTerms, Method, TaskContext, require_temperature
from gift_train.methods.image_distillation import DistillationInputs, ImageDistillation
from gift_train.methods.registry import register


@register("lwf")
class LearningWithoutForgetting(Method):
    """L = L_task + D2(s f_T(x) g_T(R)', s f(x) g_T(R)') on the task's own images (arXiv 1606.09282; METHODS 2.4).

    R = the task's class prompts. The teacher's text features stand on both sides, so only the image tower is distilled (B3).
    Departures: the teacher's features are computed once per task, which changes nothing.
    """

    summary = "Distils the previous model on the new task's own images and class prompts."
    replay = ReplaySource.TASK
    texts = TextSource.CLASSES

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

    def replay_inputs(self, student: Backbone, batch: ReplayBatch) -> DistillationInputs | None:
        return self.distillation.inputs(batch)

    def replay_terms(self, student: Backbone, inputs: DistillationInputs) -> LossTerms:
        return self.distillation.terms(student, inputs)
