"""RAIL: CLIP stays frozen; ridge regression on random features of its images, asked where zero-shot finds a learned class."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gift_shared.errors import ConfigError, NonFiniteError
from gift_shared.manifests import Classes, JoinedClasses, TaskManifest, as_read
from gift_train.clip.candidates import Answer, Answers, Candidates
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import class_features, similarity_logits
from gift_train.data.batches import TaskBatch
from gift_train.methods.base import LossTerms, Method, TaskContext
from gift_train.methods.registry import register


@register("rail")
class Rail(Method):
    """W = (G + lambda I)^-1 C,  G = sum Phi'Phi,  C = sum Phi'Y over all images of all tasks so far (arXiv 2406.18868, primal form).

    Phi = ReLU(f P'): f the images' features, L2-normalised, P [H, D] drawn once, uniform within 1/sqrt(D); Y their classes, one-hot, of
    all tasks side by side. A step looks at a batch and no more: nothing has a gradient, no weight of CLIP moves.

        p = (1 - share) softmax(s f g') + share Phi W    for an image whose highest s f g' is of a learned class
        p = softmax(s f g')                              for any other;  0 for Phi W of a class that is not learned

    The softmax and what is highest are over the candidates: the published code has all classes of the order for them (X-TAIL). Names that
    read alike in several tasks are one class, as our evaluation has it: learned, if it was learned in any of the candidates' tasks.

    The published code keeps R = (G + lambda I)^-1, from a whole first task in double precision, and in single precision changes it batch
    by batch, R <- R - R Phi' (I + Phi R Phi')^+ Phi R and W <- W + R Phi' (Y - Phi W). The two are the same W (Woodbury). Here G and C are
    summed for every task as that code sums them for its first, and a task ends with one Cholesky solve in double precision: rounding
    does not travel from batch to batch, and a batch costs one product of H x H where theirs, multiplied from left to right, costs a
    product of two H x H matrices.

    Odd in that code: its first task is solved at once and not recursively; s is 100 whatever the model says, here the model's own; its
    configuration leaves tasks that are not learned out of the table; classes that two tasks share are two there, so that their texts tie.
    """

    summary = "Frozen CLIP; ridge regression on random features of its images, fused with zero-shot where that finds a learned class."
    trains_weights = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """hidden_width: H. ridge: lambda, of squared features. regression_share: of the fused score, fraction."""

        hidden_width: int
        ridge: float
        regression_share: float

        def __post_init__(self) -> None:
            if self.hidden_width < 1:
                raise ConfigError(f"hidden_width must be 1 or more random features, found {self.hidden_width}.")
            if self.ridge <= 0:
                raise ConfigError(f"ridge must be above 0, or too few images have no solution; found {self.ridge}.")
            if not 0 <= self.regression_share <= 1:
                raise ConfigError(f"regression_share is a fraction from 0 to 1, found {self.regression_share}.")

    def __init__(self, config: "Rail.Config") -> None:
        super().__init__(config)
        self.columns: dict[tuple[str, int], int] = {}  # of `weights`, by dataset and label there: what is learned
        self.projection = self.gram = self.moments = self.weights = torch.empty(0)  # [H, D], [H, H], [H, K], [H, K]

    def check_model(self, student: Backbone) -> None:
        if student.precision == "tf32":
            raise ConfigError("rail solves for what is left of large sums, which tf32 rounds away: set precision to fp32 or bf16.")

    @torch.no_grad()
    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        super().begin_task(context, student)
        width, device = self.config.hidden_width, student.device
        if not self.columns:
            num_features = student.encode_texts(context.class_tokens[:1]).shape[1]
            bound = num_features**-0.5
            self.projection = torch.empty(width, num_features).uniform_(-bound, bound).to(device)
            context.ranks.broadcast([self.projection])
            self.gram = torch.zeros(width, width, device=device)
            self.moments = torch.zeros(width, 0, device=device)
        num_classes = len(context.class_tokens)
        self.moments = torch.cat([self.moments, torch.zeros(width, num_classes, device=device)], dim=1)

    @torch.no_grad()
    def task_loss(self, student: Backbone, batch: TaskBatch) -> LossTerms:
        """No loss: the batch joins the sums, on every rank the whole of it."""
        features = self.context.ranks.all_gather(student.encode_images(batch.images), len(batch.labels))
        expanded = self.expanded(features)
        targets = torch.nn.functional.one_hot(batch.labels + len(self.columns), self.moments.shape[1])
        self.gram.addmm_(expanded.T, expanded)
        self.moments.addmm_(expanded.T, targets.to(expanded.dtype))
        return LossTerms()

    def expanded(self, image_features: Tensor) -> Tensor:
        """Phi [B, H] of features [B, D]."""
        return (image_features @ self.projection.T).relu()

    def end_task(self, student: Backbone) -> None:
        ranks, classes = self.context.ranks, self.context.classes
        assert isinstance(classes, TaskManifest)
        self.weights = ranks.all_or_none(self._solution)
        ranks.broadcast([self.weights])
        for label in classes.dataset_labels:
            self.columns[classes.dataset.name, label] = len(self.columns)

    @torch.no_grad()
    def _solution(self) -> Tensor:
        """W [H, K]. Raises NonFiniteError if there is none."""
        where = torch.device("cpu") if self.gram.device.type == "mps" else self.gram.device  # Metal has no double precision
        normal = self.gram.to(where).double()
        normal.diagonal().add_(self.config.ridge)
        factor, fault = torch.linalg.cholesky_ex(normal)
        weights = torch.cholesky_solve(self.moments.to(where).double(), factor).float()
        if int(fault) or not bool(weights.isfinite().all()):
            raise NonFiniteError(f"{self.context.task_name}: the regression has no solution. Raise method_config.ridge, or use fp32.")
        return weights.to(self.gram.device)

    def answers(self, student: Backbone, classes: Classes) -> Mapping[str, Answer]:
        return {"": Fused(self, student, classes)} if self.columns else super().answers(student, classes)

    def state_dict(self) -> dict[str, Tensor]:
        """P, G and C, from which a next task goes on, and W; `learned/<n>/<dataset>` holds the labels [k] of consecutive columns."""
        state = {"projection": self.projection, "gram": self.gram, "moments": self.moments}
        datasets: dict[str, list[int]] = {}
        for dataset, label in self.columns:
            datasets.setdefault(dataset, []).append(label)
        learned = {f"learned/{place:04d}/{name}": torch.tensor(labels) for place, (name, labels) in enumerate(datasets.items())}
        return state | ({"weights": self.weights} | learned if learned else {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.projection, self.gram, self.moments = state["projection"], state["gram"], state["moments"]
        self.columns = {}
        for key in sorted(key for key in state if key.startswith("learned/")):
            dataset = key.split("/", 2)[2]
            for label in state[key].tolist():
                self.columns[dataset, label] = len(self.columns)
        if self.columns:
            self.weights = state["weights"]


class Fused:
    """Scores of images among candidates: zero-shot's, and the regression's where those find a learned class."""

    def __init__(self, method: Rail, student: Backbone, classes: Classes) -> None:
        self.method = method
        self.student = student
        self.text_features = class_features(student, classes)
        parts = classes.parts if isinstance(classes, JoinedClasses) else (classes,)
        owners = [(part.dataset.name, label) for part in parts for label in part.dataset_labels]
        self.datasets = [dataset for dataset, _ in owners]
        self.names = [as_read(name) for name in classes.class_names]
        own = [method.columns.get(owner, -1) for owner in owners]
        self.own = torch.tensor(own, device=student.device)  # [K], the regression's columns; -1 = not learned
        self._learned: dict[Candidates, Tensor | None] = {}

    def __call__(self, images: Tensor) -> Answers:
        """[B, 3, H, W] -> scores by candidates. Zero-shot's logits where none of them is learned, else p."""
        features = self.student.encode_images(images)
        logits = similarity_logits(features, self.text_features, self.student.scale)

        @cache
        def regression() -> Tensor:
            found = self.method.expanded(features) @ self.method.weights
            return found[:, self.own.clamp(min=0)] * (self.own >= 0)

        def among(candidates: Candidates) -> Tensor:
            zero_shot, learned = logits[:, candidates.columns], self._learned_of(candidates)
            if learned is None:
                return zero_shot
            share, probabilities = self.method.config.regression_share, zero_shot.softmax(dim=1)
            fused = (1 - share) * probabilities + share * regression()[:, candidates.columns]
            return torch.where(learned[zero_shot.argmax(dim=1)][:, None], fused, probabilities)

        return among

    def _learned_of(self, candidates: Candidates) -> Tensor | None:
        """Which of the candidates' columns are learned, [M] bool; None if none is."""
        if candidates not in self._learned:
            columns = torch.arange(len(self.names))[_on_cpu(candidates.columns)].tolist()
            own = self.own.tolist()
            learned_in: dict[str, set[str]] = {}
            for column in columns:
                if own[column] >= 0:
                    learned_in.setdefault(self.names[column], set()).add(self.datasets[column])
            # Within a dataset labels decide; between two, names that read alike are one class.
            found = [own[one] >= 0 or bool(learned_in.get(self.names[one], set()) - {self.datasets[one]}) for one in columns]
            self._learned[candidates] = torch.tensor(found, device=self.own.device) if any(found) else None
        return self._learned[candidates]


def _on_cpu(columns: slice | Tensor) -> slice | Tensor:
    return columns if isinstance(columns, slice) else columns.cpu()
