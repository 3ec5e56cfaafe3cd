"""Who answers for an image: the expert of a task that is known, else the initial model and the experts whose classes look most like it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from gift_shared.manifests import Classes
from gift_train.clip.candidates import Answers, Candidates
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import class_features, mean_text_features, similarity_logits
from gift_train.data.batches import TaskBatch
from gift_train.distributed import Ranks
from gift_train.methods.condu.merging import Unified


@torch.no_grad()
def class_prototypes(initial: Backbone, images: Iterable[TaskBatch], classes: Classes, ranks: Ranks) -> Tensor:
    """p_c = norm(mean_i f(x_i) + mean_k g(t_ck)) over the images x and the texts t of class c, features of the initial model. [K, D].

    Neither mean is normalised before they are added, as in the published code. A class without images has that of its texts.
    """
    texts = mean_text_features(initial, classes)
    sums, counts = torch.zeros_like(texts), texts.new_zeros(len(texts), 1)
    for batch in images:
        features = ranks.all_gather(initial.encode_images(batch.images), len(batch.labels))
        is_of = F.one_hot(batch.labels, len(texts)).T.to(features.dtype)
        sums += is_of @ features
        counts += is_of.sum(dim=1, keepdim=True)
    return F.normalize(sums / counts.clamp(min=1) + texts, dim=-1)


def nearest_tasks(image_features: Tensor, prototypes: Sequence[Tensor], number: int) -> Tensor:
    """The tasks whose most similar class is most similar to each image, the most similar first: [B, min(number, T)].

    Args:
        image_features: [B, D], of the initial model. prototypes: of each task [K, D]. Both L2-normalised.
    """
    similarities = torch.stack([(image_features @ of_task.T).amax(dim=1) for of_task in prototypes], dim=1)
    return similarities.sort(dim=1, descending=True, stable=True).indices[:, :number]


class Experts:
    """The networks theta_0 + lambda_i M_i * delta_uni of all learned tasks, one at a time, in the memory of one."""

    def __init__(self, initial: Backbone, unified: Unified) -> None:
        self.initial = initial
        self._unified = unified.to(initial.device)
        self._network = initial.frozen_copy()
        self._held: int | None = None

    @torch.no_grad()
    def expert(self, number: int) -> Backbone:
        """That of a task; it is another's as soon as another one is asked for."""
        if number != self._held:
            initial, self._held = self.initial.weights(), number
            for name, weight in self._network.weights().items():
                torch.add(initial[name], self._unified.of_task(name, number), out=weight)
        return self._network


class ExpertAnswer:
    """Scores of images among candidates. Each network encodes the texts of all classes once, when it is first needed.

    One task as candidate, and learned: its expert's similarities. Else the mean of theta_0's and of those of the `num_nearest` experts
    whose prototypes are nearest to the image.
    """

    def __init__(self, experts: Experts, prototypes: Mapping[str, Tensor], num_nearest: int, classes: Classes) -> None:
        self.experts = experts
        self.prototypes = {name: of_task.to(experts.initial.device) for name, of_task in prototypes.items()}
        self.num_nearest = num_nearest
        self._places = {name: number for number, name in enumerate(prototypes)}
        self._classes = classes
        self._class_features: dict[int | None, Tensor] = {}

    def __call__(self, images: Tensor) -> Answers:
        """Nothing is computed before candidates are told."""
        return _BatchAnswers(self, images)

    def place(self, candidates: Candidates) -> int | None:
        """The expert that answers alone; None if all are asked."""
        return self._places.get(candidates.datasets[0]) if len(candidates.datasets) == 1 else None

    def class_features(self, number: int | None) -> Tensor:
        """[K, D] by the expert of a task, by theta_0 if None."""
        if number not in self._class_features:
            network = self.experts.initial if number is None else self.experts.expert(number)
            self._class_features[number] = class_features(network, self._classes)
        return self._class_features[number]

    def expert_scores(self, number: int, images: Tensor) -> Tensor:
        """[B, K] by one expert."""
        texts, network = self.class_features(number), self.experts.expert(number)
        return similarity_logits(network.encode_images(images), texts, network.scale)


class _BatchAnswers:
    """What one batch of images is asked; each network that answers sees an image once."""

    def __init__(self, answer: ExpertAnswer, images: Tensor) -> None:
        self._answer = answer
        self._images = images
        self._by_expert: dict[int, Tensor] = {}  # [B, K] of those that were asked for all images

    @torch.no_grad()
    def __call__(self, candidates: Candidates) -> Tensor:
        place = self._answer.place(candidates)
        scores = self._vote if place is None else self._of_expert(place)
        return scores[:, candidates.columns]

    def _of_expert(self, number: int) -> Tensor:
        if number not in self._by_expert:
            self._by_expert[number] = self._answer.expert_scores(number, self._images)
        return self._by_expert[number]

    @cached_property
    def _vote(self) -> Tensor:
        """[B, K]. An expert looks at the images that are near to its task alone."""
        answer = self._answer
        initial = answer.experts.initial
        features = initial.encode_images(self._images)
        total = similarity_logits(features, answer.class_features(None), initial.scale)
        nearest = nearest_tasks(features, list(answer.prototypes.values()), answer.num_nearest)
        for number in nearest.unique().tolist():
            rows = (nearest == number).any(dim=1).nonzero().flatten()
            whole = self._by_expert.get(number)
            total[rows] += answer.expert_scores(number, self._images[rows]) if whole is None else whole[rows]
        return total / (1 + nearest.shape[1])
