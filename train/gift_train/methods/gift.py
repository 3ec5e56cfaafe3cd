"""GIFT: distil on synthetic image-text pairs, hold them aligned, and guard the weights that this leans on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource
from gift_train.methods.base import LossTerms, Method, TaskContext, require_temperature
from gift_train.methods.consolidation import Penalty, batch_fisher, interpolate, running_mean
from gift_train.methods.contrastive import ContrastiveLossName, contrastive_loss, require_bias
from gift_train.methods.losses import feature_distance
from gift_train.methods.registry import register
from gift_train.methods.teacher import Teacher, encode_captions


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
        contrastive_loss: ContrastiveLossName = "softmax"

        def __post_init__(self) -> None:
            _check(self)

    def __init__(self, config: "Gift.Config") -> None:
        super().__init__(config)
        self.contrastive_loss = contrastive_loss(config.contrastive_loss)
        self.fisher: dict[str, Tensor] | None = None
        self.num_averaged = 0

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
        # Teacher and anchor are the same weights by default: one frozen copy serves both.
        is_shared = self.config.teacher == "last"
        self.anchor = dict(self.teacher.backbone.parameters()) if is_shared else student.weights_copy()
        self.fisher, self.num_averaged = None, 0

    def _teacher_backbone(self, context: TaskContext, student: Backbone) -> Backbone:
        backbone = student.frozen_copy()
        if self.config.teacher == "initial":
            backbone.load_weights(context.initial_weights)
        elif self.config.teacher == "wise":
            backbone.load_weights(interpolate(student.weights(), context.initial_weights, self.config.teacher_alpha))
        return backbone

    def replay_loss(self, student: Backbone, batch: ReplayBatch) -> LossTerms:
        config, ranks = self.config, self.context.ranks
        if config.distill_weight == 0 and config.alignment_weight == 0:
            return LossTerms()
        teacher_images, teacher_texts = self.teacher.image_features(batch), self.teacher.text_features(batch)
        images, texts = teacher_images, teacher_texts
        if config.distillation != "text-only":
            images = ranks.all_gather(student.encode_images(batch.images), len(batch.sample_keys))
        if config.distillation != "image-only":
            texts = encode_captions(student, batch, ranks)
        loss = self.contrastive_loss
        logits = loss.logits(images, texts, student)
        terms = {}
        if config.distill_weight != 0 and config.distillation == "feature-distance":
            distance = feature_distance(images, teacher_images) + feature_distance(texts, teacher_texts)
            terms["distillation"] = config.distill_weight * distance
        elif config.distill_weight != 0:
            distillation = loss.distillation(logits, loss.logits(teacher_images, teacher_texts, student), temperature=config.temperature)
            terms["distillation"] = config.distill_weight * distillation
        if config.alignment_weight != 0:
            alignment = loss.alignment(logits, batch.caption_ids, label_smoothing=self.context.label_smoothing)
            terms["alignment"] = config.alignment_weight * alignment
        return LossTerms(**terms)

    def after_replay_backward(self, student: Backbone) -> None:
        if self.config.weight_consolidation != "adaptive":
            return
        if self.config.fisher_steps is None:
            self.fisher = batch_fisher(student.parameters())
        elif self.num_averaged < self.config.fisher_steps:
            self.fisher = running_mean(self.fisher, batch_fisher(student.parameters()), self.num_averaged)
            self.num_averaged += 1

    def penalty(self, student: Backbone) -> Penalty | None:
        if self.config.weight_consolidation == "none" or not self.config.consolidation_weight:
            return None
        return Penalty(name="weight_consolidation", weight=self.config.consolidation_weight, anchor=self.anchor, fisher=self.fisher)

    def end_task(self, student: Backbone) -> None:
        self.fisher = None  # belongs to this task: nothing is kept between tasks

    def state_dict(self) -> dict[str, Tensor]:
        if self.config.fisher_steps is None or self.fisher is None:
            return {}
        state = {f"fisher/{name}": tensor for name, tensor in self.fisher.items()}
        return state | {"num_averaged": torch.tensor(self.num_averaged)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            return
        self.num_averaged = int(state["num_averaged"])
        self.fisher = {name.removeprefix("fisher/"): tensor for name, tensor in state.items() if name != "num_averaged"}


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
    distils_pairs = config.distill_weight != 0 and config.distillation != "feature-distance"
    if config.contrastive_loss == "sigmoid" and not distils_pairs and config.alignment_weight == 0:
        raise ConfigError('contrastive_loss = "sigmoid" is read by no term: no similarities are distilled and alignment_weight is 0.')
    if config.weight_consolidation == "adaptive" and config.distill_weight == 0 and config.alignment_weight == 0:
        raise ConfigError(
            "Adaptive weight consolidation reads its Fisher from the replay loss, but distill_weight and alignment_weight are both 0."
            " Set weight_consolidation to 'plain-l2' or 'none'."
        )
