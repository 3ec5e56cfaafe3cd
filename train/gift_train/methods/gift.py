"""GIFT: distil on synthetic image-text pairs, hold them aligned, and guard the weights that this leans on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.clip.flat_tensors import FlatTensors
from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource
from gift_train.methods.averaging import WeightAverage
from gift_train.methods.base import LossTerms, Method, TaskContext, require_temperature
from gift_train.methods.consolidation import BatchFisher, Fisher, HeldFisher, Penalty, Weights, batch_fisher, interpolate, running_mean
from gift_train.methods.contrastive import ContrastiveLossName, contrastive_loss, require_bias
from gift_train.methods.losses import feature_distance
from gift_train.methods.pairs import PairInputs, pair_inputs
from gift_train.methods.registry import register
from gift_train.methods.teacher import Teacher


@register("gift")
class Gift(Method):
    """L = L_task + L_CD + beta L_ITA + lambda L_AWC (arXiv 2503.04229; METHODS 3).

    Departures from the authors' code: a tensor without gradient gets Fisher 1e-6 also when its gradient is all zero (D5);
    the static Fisher keeps the replay losses alive after its last step (D3); no term is counted twice (D1).
    """

    summary = "Contrastive distillation and alignment on synthetic pairs, adaptive weight consolidation."
    replay = ReplaySource.SYNTHETIC

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Switches of the paper's ablations. Weights multiply their loss terms; `temperature` has no unit.

        contrastive_loss: of the distillation "contrastive" (and of one tower alone) and of the alignment: "softmax" as published, or
            "sigmoid" for models with a logit bias.
        teacher_alpha: share of the initial weights in the `wise` teacher, fraction.
        fisher_steps: the Fisher is averaged over the first so many steps of a task and then stays; absent = anew each step.
        average_every: what is handed on is the mean of the weights after steps 0, n, 2n ... and of those before; absent = the last ones.
        """

        distillation: Literal["contrastive", "image-only", "text-only", "feature-distance"]
        distill_weight: float
        temperature: float
        teacher: Literal["initial", "last", "wise"]
        teacher_alpha: float | None = None
        alignment_weight: float
        weight_consolidation: Literal["adaptive", "plain-l2", "none"]
        consolidation_weight: float | None = None
        fisher_steps: int | None = None
        average_every: int | None = None
        contrastive_loss: ContrastiveLossName = "softmax"

        def __post_init__(self) -> None:
            _check(self)

    def __init__(self, config: "Gift.Config") -> None:
        super().__init__(config)
        self.contrastive_loss = contrastive_loss(config.contrastive_loss)
        self.fisher: BatchFisher | HeldFisher | None = None  # of this step, or
        self.mean_fisher: FlatTensors | None = None  # of the task's first ones
        self.num_averaged = 0
        self.average: WeightAverage | None = None

    def check_model(self, student: Backbone) -> None:
        require_bias(self.config.contrastive_loss, student)

    @property
    def encodes_captions(self) -> bool:
        config = self.config
        compares_pairs = config.distill_weight != 0 or config.alignment_weight != 0
        return bool(compares_pairs and config.distillation != "image-only")

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        self.teacher = Teacher(self._teacher_backbone(context, student), context.ranks)
        if context.replay_pass is not None:
            self.teacher.cache_features(context.replay_pass())
        if self._penalises:
            self.theta = student.flat_weights()
            # Teacher and anchor are the same weights by default: one frozen copy serves both.
            is_shared = self.config.teacher == "last"
            self.anchor = self.teacher.backbone.flat_weights() if is_shared else self.theta.copy()
        self.fisher, self.mean_fisher, self.num_averaged = None, None, 0
        if self.config.average_every is not None:
            theta = student.flat_weights()
            self.average = WeightAverage(self.config.average_every, theta, self.anchor if self._penalises else theta.copy())

    def _teacher_backbone(self, context: TaskContext, student: Backbone) -> Backbone:
        backbone = student.frozen_copy()
        if self.config.teacher == "initial":
            backbone.load_weights(context.initial_weights)
        elif self.config.teacher == "wise":
            backbone.load_weights(interpolate(student.weights(), context.initial_weights, self.config.teacher_alpha))
        return backbone

    def replay_inputs(self, student: Backbone, batch: ReplayBatch) -> PairInputs | None:
        config = self.config
        if config.distill_weight == 0 and config.alignment_weight == 0:
            return None
        aligns = config.alignment_weight != 0
        return pair_inputs(student, self.teacher, batch, self.contrastive_loss, reads_captions=self.encodes_captions, aligns=aligns)

    def replay_terms(self, student: Backbone, inputs: PairInputs) -> LossTerms:
        config, ranks, loss = self.config, self.context.ranks, self.contrastive_loss
        teacher_images, teacher_texts = inputs.teacher_images, inputs.teacher_texts
        images, texts = teacher_images, teacher_texts
        if config.distillation != "text-only":
            images = ranks.all_gather(student.encode_images(inputs.images), len(teacher_images))
        if inputs.captions is not None:
            texts = inputs.captions.encoded(student, ranks)
        logits = loss.logits(images, texts, student)
        terms = {}
        if config.distill_weight != 0 and config.distillation == "feature-distance":
            distance = feature_distance(images, teacher_images) + feature_distance(texts, teacher_texts)
            terms["distillation"] = config.distill_weight * distance
        elif config.distill_weight != 0:
            distillation = loss.distillation(logits, loss.logits(teacher_images, teacher_texts, student), temperature=config.temperature)
            terms["distillation"] = config.distill_weight * distillation
        if inputs.target is not None:
            alignment = loss.alignment(logits, inputs.target, label_smoothing=self.context.label_smoothing)
            terms["alignment"] = config.alignment_weight * alignment
        return LossTerms(**terms)

    @property
    def _penalises(self) -> bool:
        return self.config.weight_consolidation != "none" and bool(self.config.consolidation_weight)

    @property
    def reads_replay_gradient(self) -> bool:
        config = self.config
        reads = config.weight_consolidation == "adaptive" and self._penalises
        return reads and (config.fisher_steps is None or self.num_averaged < config.fisher_steps)

    def after_replay_backward(self, student: Backbone, gradient: FlatTensors) -> None:
        fisher = batch_fisher(gradient)
        if self.config.fisher_steps is None:
            self.fisher = HeldFisher(fisher.held()) if self.keeps_fisher else fisher
        else:
            self.mean_fisher = running_mean(self.mean_fisher, fisher.held(), self.num_averaged)
            self.num_averaged += 1

    def penalty(self, student: Backbone) -> Penalty | None:
        if not self._penalises:
            return None
        fisher: Fisher | None = self.fisher if self.mean_fisher is None else HeldFisher(self.mean_fisher)
        if isinstance(fisher, BatchFisher):
            self.fisher = None  # made of a gradient that the penalty changes
        weight = self.config.consolidation_weight
        assert weight is not None
        return Penalty(name="weight_consolidation", weight=weight, theta=self.theta, anchor=self.anchor, fisher=fisher)

    def last_fisher(self) -> Weights | None:
        if self.mean_fisher is not None:
            return self.mean_fisher.views
        return self.fisher.entries.views if isinstance(self.fisher, HeldFisher) else None

    def after_step(self, student: Backbone, step: int) -> None:
        if self.average is not None:
            self.average.after_step(step)

    def end_task(self, student: Backbone) -> None:
        if self.average is not None:
            student.load_weights(self.average.mean.views)
        self.fisher = self.mean_fisher = self.average = None  # of this task: nothing is kept between tasks

    def state_dict(self) -> dict[str, Tensor]:
        state = {} if self.average is None else self.average.state_dict()
        if self.mean_fisher is None:
            return state
        fisher = {f"fisher/{name}": tensor for name, tensor in self.mean_fisher.views.items()}
        return state | fisher | {"num_averaged": torch.tensor(self.num_averaged)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self.average is not None and state:
            self.average.load_state_dict(state)
        if "num_averaged" in state and self._penalises:
            self.num_averaged = int(state["num_averaged"])
            self.mean_fisher = self.theta.layout.gathered([state[f"fisher/{name}"] for name in self.theta.layout.shapes])


def _check(config: Gift.Config) -> None:
    require_temperature(config.temperature)
    if (config.teacher == "wise") != (config.teacher_alpha is not None):
        raise ConfigError("teacher_alpha, the share of the initial weights, goes with teacher = 'wise' and with no other.")
    if config.teacher_alpha is not None and not 0 <= config.teacher_alpha <= 1:
        raise ConfigError(f"teacher_alpha is a fraction from 0 to 1, found {config.teacher_alpha}.")
    if (config.weight_consolidation == "none") != (config.consolidation_weight is None):
        raise ConfigError("consolidation_weight goes with weight_consolidation = 'adaptive' or 'plain-l2', and not with 'none'.")
    if config.fisher_steps is not None and (config.weight_consolidation != "adaptive" or config.fisher_steps < 1):
        raise ConfigError("fisher_steps (1 or more) goes with weight_consolidation = 'adaptive' only.")
    if config.average_every is not None and config.average_every < 1:
        raise ConfigError(f"average_every must be 1 or more steps, found {config.average_every}.")
    distils_pairs = config.distill_weight != 0 and config.distillation != "feature-distance"
    if config.contrastive_loss == "sigmoid" and not distils_pairs and config.alignment_weight == 0:
        raise ConfigError('contrastive_loss = "sigmoid" is read by no term: no similarities are distilled and alignment_weight is 0.')
    if config.weight_consolidation == "adaptive" and config.distill_weight == 0 and config.alignment_weight == 0:
        raise ConfigError(
            "Adaptive weight consolidation reads its Fisher from the replay loss, but distill_weight and alignment_weight are both 0."
            " Set weight_consolidation to 'plain-l2' or 'none'."
        )
