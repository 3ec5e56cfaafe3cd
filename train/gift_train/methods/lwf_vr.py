"""Learning without Forgetting with a virtual vocabulary: random sentences in place of class prompts."""

from dataclasses import dataclass

from gift_train.backbone import Backbone
from gift_train.losses import fixed_text_distillation
from gift_train.methods.base import LossTerms, Method, ReplaySource, TaskContext, TextSource, register
from gift_train.replay import ReplayBatch
from gift_train.teacher import Teacher


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

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        assert context.reference_tokens is not None
        self.teacher = Teacher(student.frozen_copy())
        self.reference_features = self.teacher.encode_texts(context.reference_tokens)
        if context.replay_pass is not None:
            self.teacher.remember(context.replay_pass(), captions=False)

    def replay_loss(self, student: Backbone, batch: ReplayBatch) -> LossTerms:
        if self.config.distill_weight == 0:
            return LossTerms()
        distillation = fixed_text_distillation(
            student.encode_images(batch.images),
            self.teacher.image_features(batch),
            self.reference_features,
            scale=student.scale,
            temperature=self.config.temperature,
        )
        return LossTerms(distillation=self.config.distill_weight * distillation)
