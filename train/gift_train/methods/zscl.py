"""ZSCL: distil the initial model on a reference set, hold the weights, hand on their average over the task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource, TextSource
from gift_train.methods.averaging import WeightAverage
from gift_train.methods.base import LossTerms, Method, TaskContext, require_temperature
from gift_train.methods.consolidation import Penalty
from gift_train.methods.contrastive import ContrastiveLossName, require_bias
from gift_train.methods.image_distillation import DistillationInputs, ImageDistillation
from gift_train.methods.registry import register


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Where the two halves of the reference set come from; images and texts need not pair.

    images: "synthetic" = as the recipe's [replay] says; "reference" = folder or tars given by --reference-images (ImageNet in
        the paper).
    texts: "captions" = of the synthetic images; "file" = given by --reference-captions (Conceptual Captions in the paper);
        "pretraining-classes" = prompts of the order's pretraining source, in its first template.
    num_images: a random subset of so many reference images, drawn with the run's seed once for all tasks; all if left out.
    """

    images: Literal["synthetic", "reference"]
    texts: Literal["captions", "file", "pretraining-classes"]
    num_images: int | None = None

    def __post_init__(self) -> None:
        if self.images == "reference" and self.texts == "captions":
            raise ConfigError(
                'texts = "captions" are those of synthetic images; with images = "reference" take "file" or "pretraining-classes".'
            )
        if self.num_images is not None and self.images == "synthetic":
            raise ConfigError('num_images belongs to images = "reference"; synthetic images are counted by [replay] num_images.')
        if self.num_images is not None and self.num_images < 1:
            raise ConfigError(f"num_images must be 1 or more, found {self.num_images}.")


@register("zscl")
class Zscl(Method):
    """L = L_task + D2(s f_0(x) g_0(R)', s f(x) g_0(R)') + lambda sum (theta - theta_{t-1})^2 (arXiv 2303.06628; METHODS 2.7).

    What is handed on is the mean of theta_{t-1} and the weights after every `average_every`-th step; training itself goes on
    from theta. Departures: R's features are computed once, not at every step (B11), which changes nothing.
    """

    summary = "Distils the initial model on reference images and captions, l2, weight average."
    replay = ReplaySource.SYNTHETIC
    texts = TextSource.CAPTIONS

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """`average_every` in steps: the weights after steps 0, n, 2n ... join the average. `l2_weight = 0` is ZSCL*.

        Without `reference`, synthetic images and their captions are the reference set: not the paper's row. `contrastive_loss` is
        "softmax" as published, or "sigmoid" for models with a logit bias: each of R's texts is then a pair with each image.
        """

        distill_weight: float
        temperature: float
        l2_weight: float
        average_every: int
        reference: ReferenceSet | None = None
        contrastive_loss: ContrastiveLossName = "softmax"

        def __post_init__(self) -> None:
            require_temperature(self.temperature)
            if self.average_every < 1:
                raise ConfigError(f"average_every must be 1 or more steps, found {self.average_every}.")
            if self.contrastive_loss == "sigmoid" and self.distill_weight == 0:
                raise ConfigError('contrastive_loss = "sigmoid" is read by no term: distill_weight is 0.')

    def __init__(self, config: "Zscl.Config") -> None:
        super().__init__(config)
        self.average: WeightAverage | None = None

    def replay_source(self) -> ReplaySource:
        return self.replay if self.config.reference is None else ReplaySource(self.config.reference.images)

    def text_source(self) -> TextSource:
        return self.texts if self.config.reference is None else TextSource(self.config.reference.texts)

    def num_reference_images(self) -> int | None:
        return None if self.config.reference is None else self.config.reference.num_images

    def check_model(self, student: Backbone) -> None:
        require_bias(self.config.contrastive_loss, student)

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        self.theta = student.flat_weights()
        self.anchor = self.theta.copy()
        self.average = WeightAverage(self.config.average_every, self.theta, self.anchor)
        backbone = student.frozen_copy()
        backbone.load_weights(context.initial_weights)
        config = self.config
        self.distillation = ImageDistillation(
            backbone, context, weight=config.distill_weight, temperature=config.temperature, loss=config.contrastive_loss
        )

    def replay_inputs(self, student: Backbone, batch: ReplayBatch) -> DistillationInputs | None:
        return self.distillation.inputs(batch)

    def replay_terms(self, student: Backbone, inputs: DistillationInputs) -> LossTerms:
        return self.distillation.terms(student, inputs)

    def penalty(self, student: Backbone) -> Penalty | None:
        if self.config.l2_weight == 0:
            return None
        return Penalty(name="weight_distance", weight=self.config.l2_weight, theta=self.theta, anchor=self.anchor)

    def after_step(self, student: Backbone, step: int) -> None:
        assert self.average is not None
        self.average.after_step(step)

    def end_task(self, student: Backbone) -> None:
        assert self.average is not None
        student.load_weights(self.average.mean.views)
        self.average = None

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self.average is None:
            super().load_state_dict(state)
        elif state:
            self.average.load_state_dict(state)
