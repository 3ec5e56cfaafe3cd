"""MoE-Adapter: CLIP stays frozen; each task gets a router over shared experts, and a selector picks the router at test time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_shared.manifests import Classes
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import class_features, similarity_logits
from gift_train.data.batches import TaskBatch
from gift_train.data.sources import NoTaskSource
from gift_train.methods.base import LossTerms, Method, TaskContext
from gift_train.methods.moe_adapter.adapters import Batch, Mixture, MixtureSettings, Route, attach_mixtures
from gift_train.methods.moe_adapter.task_selector import NO_TASK, Routing, SelectorSettings, TaskSelector, selector_features
from gift_train.methods.registry import register


@register("moe_adapter")
class MoeAdapter(Method):
    """L = L_task through router t, over experts and routers alone (Yu et al., arXiv 2403.11549; METHODS 2.8).

    The top_k most counted experts of each block are frozen when a task ends. An image of no learned task meets plain CLIP.
    In class-incremental learning the published code has one router for all steps, `routers = "shared"`: nothing is selected or frozen.
    Departures from the published code: the frozen experts are part of the checkpoint, not of a file that is appended to (C4);
    auto-encoders of tasks to come do not take part in the choice, in which they could not win; each task's auto-encoder is
    trained when its task begins, which changes nothing, as they are independent.
    """

    summary = "Frozen CLIP; experts shared by all tasks, a router per task, a selector (DDAS) that picks the router."

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """What a run of this method needs to know.

        routing: "batch" = an evaluation batch votes on its task, as published; "sample" = each image decides for itself (C3).
            Evaluation reports the other one beside it.
        balance_weight: of the balance loss; 0 as published, where it is computed with 0.01 and left out (C1).
        routers: "task" = one for each; "shared" = one that all tasks train, with all experts, and no selector.
        """

        mixture: MixtureSettings
        routing: Routing
        balance_weight: float
        routers: Literal["task", "shared"] = "task"
        selector: SelectorSettings | None = None

        def __post_init__(self) -> None:
            if (self.routers == "shared") != (self.selector is None):
                needs = "leaves nothing to select; remove" if self.routers == "shared" else "needs"
                raise ConfigError(f'routers = "{self.routers}" {needs} the [method_config.selector] table.')

    def __init__(self, config: "MoeAdapter.Config") -> None:
        super().__init__(config)
        self.route = Route()
        self.mixtures: dict[str, Mixture] = {}
        self.selector: TaskSelector | None = None
        self.num_learned = 0

    def no_task_source(self) -> NoTaskSource:
        selector = self.config.selector
        return NoTaskSource.NONE if selector is None or selector.features == "none" else NoTaskSource(selector.no_task_images)

    def check_model(self, student: Backbone) -> None:
        student.residual_blocks()

    def prepare(self, student: Backbone, num_tasks: int) -> None:
        student.network.requires_grad_(False)
        num_routers = 1 if self.config.routers == "shared" else num_tasks
        self.mixtures = attach_mixtures(student.residual_blocks(), num_routers, self.config.mixture, self.route)
        selector = self.config.selector
        if selector is not None and selector.features != "none":
            self.selector = TaskSelector(selector_features(selector, student), selector)

    def trainable(self, student: Backbone) -> dict[str, torch.nn.Parameter]:
        """All routers, and the experts not yet frozen. Only this task's router and the experts it picks get a gradient."""
        return {name: parameter for name, parameter in student.parameters().items() if parameter.requires_grad}

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        self.num_learned = context.task_index
        for mixture in self.mixtures.values():
            mixture.set_frozen(mixture.frozen if context.task_index else frozenset())
            mixture.counts.zero_()
        if self.selector is not None:
            assert context.own_images is not None
            assert context.no_task_images is not None
            self.selector.learn_task(context.task_index, context.task_name, context.own_images, context.no_task_images)
            context.ranks.broadcast(self.selector.state_dict().values())  # every rank trained it, on processors that may round otherwise

    def task_loss(self, student: Backbone, batch: TaskBatch) -> LossTerms:
        weight, ranks = self.config.balance_weight, self.context.ranks
        whole = Batch(num_images=len(batch.labels), num_texts=len(self.context.class_tokens), ranks=ranks)
        before = self._counts()
        with self.route.through(self._router(self.context.task_index), training=whole, measures_balance=weight > 0) as passage:
            terms = super().task_loss(student, batch)
            if weight > 0 and passage is not None:
                terms = terms | LossTerms(balance=weight * torch.stack(passage.balances()).sum())
        self._set_counts(before + ranks.all_reduce(self._counts() - before))
        return terms

    def _router(self, task_index: int) -> int:
        return 0 if self.config.routers == "shared" else task_index

    def _counts(self) -> Tensor:
        return torch.stack([mixture.counts for mixture in self.mixtures.values()])

    def _set_counts(self, counts: Tensor) -> None:
        for mixture, of_block in zip(self.mixtures.values(), counts, strict=True):
            mixture.counts = of_block

    def end_task(self, student: Backbone) -> None:
        if self.config.routers == "task":
            for mixture in self.mixtures.values():
                mixture.freeze_most_used()
        self.num_learned = self.context.task_index + 1

    def scores(self, student: Backbone, classes: Classes) -> Callable[[Tensor], Tensor]:
        """By the recipe's routing, which may look at a batch as one."""
        return self.readings(student, classes)[""]

    def readings(self, student: Backbone, classes: Classes) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """The recipe's routing, and the other one as "routed by sample" or "routed by batch"."""
        if self.num_learned == 0:
            return {"": super().scores(student, classes)}
        routed = RoutedScores(self, student, classes)
        if self.selector is None:
            return {"": lambda images: routed(images, torch.full([len(images)], self._router(self.num_learned - 1)))}
        choose = self.selector.choose
        other: Routing = "sample" if self.config.routing == "batch" else "batch"
        return {
            "": lambda images: routed(images, choose(images, self.config.routing)),
            f"routed by {other}": lambda images: routed(images, choose(images, other)),
        }

    def state_dict(self) -> dict[str, Tensor]:
        state = {"num_learned": torch.tensor(self.num_learned)}
        for name, mixture in self.mixtures.items():
            state[f"counts/{name}"] = mixture.counts.clone()
            state[f"frozen/{name}"] = torch.tensor(sorted(mixture.frozen), dtype=torch.long)
        coders = self.selector.state_dict() if self.selector is not None else {}
        return state | {f"selector/{name}": weight for name, weight in coders.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.num_learned = int(state["num_learned"])
        for name, mixture in self.mixtures.items():
            mixture.counts = state[f"counts/{name}"].to(mixture.counts.device)
            mixture.set_frozen(frozenset(state[f"frozen/{name}"].tolist()))
        if self.selector is not None:
            coders = {name.removeprefix("selector/"): weight for name, weight in state.items() if name.startswith("selector/")}
            self.selector.load_state_dict(coders)


class RoutedScores:
    """Similarities of images to classes with both towers on the router chosen for each; a router's class features are computed once."""

    def __init__(self, method: MoeAdapter, student: Backbone, classes: Classes) -> None:
        self.method = method
        self.student = student
        self.classes = classes
        self._class_features: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, tasks: Tensor) -> Tensor:
        """Images [B, 3, H, W] and the task [B] each is taken for -> scaled similarities [B, K]."""
        scores = torch.empty(len(images), len(self.classes.class_names), device=images.device)
        for task in tasks.unique().tolist():
            rows = (tasks == task).nonzero().flatten().to(images.device)
            with self.method.route.through(None if task == NO_TASK else task):
                features = self.student.encode_images(images[rows])
                scores[rows] = similarity_logits(features, self._features(task), self.student.scale)
        return scores

    def _features(self, task: int) -> Tensor:
        if task not in self._class_features:
            self._class_features[task] = class_features(self.student, self.classes)
        return self._class_features[task]
