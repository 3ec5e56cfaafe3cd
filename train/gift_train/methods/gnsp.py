"""GNSP: later tasks change the image tower only where the inputs of earlier tasks do not reach."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource
from gift_train.methods.base import LossTerms, Method, TaskContext, require_temperature
from gift_train.methods.contrastive import contrastive_loss
from gift_train.methods.pairs import PairInputs, pair_inputs
from gift_train.methods.registry import register
from gift_train.methods.teacher import Teacher

PROJECTION = "visual.proj"  # [width, D], which its input meets from the left; the other weights meet theirs from the right
POOLED_IMAGES = 16  # whose inputs make one Gram matrix


@register("gnsp")
class Gnsp(Method):
    """L = L_task + L_D + beta L_ITA against the initial model, on synthetic pairs, and gradients in null spaces (arXiv 2507.19839).

    The first task trains all. Later ones train the weights W of the image tower's c_fc, c_proj and of its projection, and each gradient
    is projected before AdamW sees it: g <- g V_k V_k', V_k being the right singular vectors of M_W from the smallest k on at which
    sum(S[k:]) / sum(S) < `tail_share`. M_W sums over the tasks before G / |G|_F, and G over batches of 16 of their images, one epoch
    as they are trained on, X'X / |X'X|_F of W's inputs X. (Of the projection, where X is the class token, M too is normalised before a
    task is added: so the published code.)

    AdamW divides the projected gradient by its running scale, so that steps leave the null space a little: so the published code.
    """

    summary = "Distils the initial model on synthetic pairs, gradients in the null space of earlier tasks."
    replay = ReplaySource.SYNTHETIC

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Weights multiply their terms; `tail_share` is a fraction of the sum of singular values, 0 projects to nothing."""

        distill_weight: float
        temperature: float
        alignment_weight: float
        tail_share: float

        def __post_init__(self) -> None:
            require_temperature(self.temperature)
            if not 0 < self.tail_share < 1:
                raise ConfigError(f"tail_share is a fraction between 0 and 1, found {self.tail_share}.")

    def __init__(self, config: "Gnsp.Config") -> None:
        super().__init__(config)
        self.loss = contrastive_loss("softmax")
        self.grams: dict[str, Tensor] = {}  # M by weight, on the CPU; empty before the first task is done
        self.projections: dict[str, Tensor] = {}

    def check_model(self, student: Backbone) -> None:
        if not student.reads_a_class_token:
            raise ConfigError(
                "gnsp projects in open_clip's own vision transformers that read a class token (ViT-B-16, ...), and this model's image"
                f" tower, {type(student.network.visual).__name__}, is none."
            )

    def trainable(self, student: Backbone) -> dict[str, torch.nn.Parameter]:
        """All in the first task, the projected weights later."""
        parameters = student.parameters()
        return {name: parameters[name] for name in self.grams} if self.grams else parameters

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        initial = student.frozen_copy()
        initial.load_weights(context.initial_weights)
        self.teacher = Teacher(initial, context.ranks)
        if context.replay_pass is not None:
            self.teacher.cache_features(context.replay_pass())
        trained = self.trainable(student)
        for name, parameter in student.parameters().items():
            parameter.requires_grad_(name in trained)
        self.projections = {
            name: null_space_projection(gram.to(student.device), self.config.tail_share) for name, gram in self.grams.items()
        }

    def replay_inputs(self, student: Backbone, batch: ReplayBatch) -> PairInputs:
        return pair_inputs(student, self.teacher, batch, self.loss)

    def replay_terms(self, student: Backbone, inputs: PairInputs) -> LossTerms:
        ranks, config = self.context.ranks, self.config
        assert inputs.captions is not None
        assert inputs.target is not None
        images = ranks.all_gather(student.encode_images(inputs.images), len(inputs.teacher_images))
        logits = self.loss.logits(images, inputs.captions.encoded(student, ranks), student)
        teacher_logits = self.loss.logits(inputs.teacher_images, inputs.teacher_texts, student)
        distillation = self.loss.distillation(logits, teacher_logits, temperature=config.temperature)
        alignment = self.loss.alignment(logits, inputs.target, label_smoothing=self.context.label_smoothing)
        return LossTerms(distillation=config.distill_weight * distillation, alignment=config.alignment_weight * alignment)

    def before_update(self, student: Backbone) -> None:
        parameters = student.parameters()
        for name, projection in self.projections.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.copy_(projection @ gradient if name == PROJECTION else gradient @ projection)

    def end_task(self, student: Backbone) -> None:
        for parameter in student.parameters().values():
            parameter.requires_grad_(True)
        self.projections = {}
        if self.context.is_last_task:
            return
        for name, gram in self._grams(student).items():
            normalised = (gram / gram.norm()).cpu()
            before = self.grams.get(name)
            if before is not None and name == PROJECTION:
                before = before / before.norm()
            self.grams[name] = normalised if before is None else before + normalised

    @torch.no_grad()
    def _grams(self, student: Backbone) -> dict[str, Tensor]:
        """G by weight, of the task's training images as it hands them on; each rank adds its share of the batches."""
        stream, ranks = self.context.own_images, self.context.ranks
        assert stream is not None
        grams: dict[str, Tensor] = {}
        place = 0
        for images in stream.take(stream.batches_per_epoch):
            for batch in images.split(POOLED_IMAGES):
                if place % ranks.world_size == ranks.rank:
                    for name, inputs in _inputs(student, batch).items():
                        gram = inputs.T @ inputs
                        grams[name] = grams.get(name, 0) + gram / gram.norm()
                place += 1
        return {name: ranks.all_reduce(gram) for name, gram in grams.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {f"gram/{name}": gram for name, gram in self.grams.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.grams = {name.removeprefix("gram/"): gram.cpu() for name, gram in state.items()}


def null_space_projection(gram: Tensor, tail_share: float) -> Tensor:
    """V_k V_k' of a matrix M [N, N]: onto what M, up to `tail_share` of the sum of its singular values, maps to nothing.

    k is the smallest number with sum(S[k:]) / sum(S) < `tail_share`. Returns: [N, N].
    """
    _, values, vectors = torch.linalg.svd(gram)
    tails = values.flip(0).cumsum(0).flip(0) / values.sum()
    num_kept_out = int((tails >= tail_share).sum())
    basis: Tensor = vectors[num_kept_out:].T
    return basis @ basis.T


def _inputs(student: Backbone, images: Tensor) -> dict[str, Tensor]:
    """What the projected weights are given for images [B, 3, H, W]: [rows, width] by weight, all tokens of all images as rows."""
    found: dict[str, Tensor] = {}
    visual = student.network.visual
    with ExitStack() as hooks:
        for number, block in enumerate(visual.transformer.resblocks):
            for layer in ("c_fc", "c_proj"):
                name = f"visual.transformer.resblocks.{number}.mlp.{layer}.weight"
                hooks.enter_context(_noting_input(getattr(block.mlp, layer), found, name))
        hooks.enter_context(_noting_output(visual.ln_post, found, PROJECTION))
        student.network.encode_image(images)
    return found


@contextmanager
def _noting_input(module: torch.nn.Module, found: dict[str, Tensor], name: str) -> Iterator[None]:
    def note(_: Any, given: tuple[Tensor, ...]) -> None:
        found[name] = given[0].flatten(0, -2).float()

    handle = module.register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _noting_output(module: torch.nn.Module, found: dict[str, Tensor], name: str) -> Iterator[None]:
    """Of the class token, which comes first where all tokens are normalised."""

    def note(_: Any, __: Any, output: Tensor) -> None:
        found[name] = (output[:, 0] if output.ndim == 3 else output).float()

    handle = module.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()
