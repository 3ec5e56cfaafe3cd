"""GIFT's training step as the published procedure describes it, with nothing saved: what our own step is timed and checked against.

float32; every class prompt and every caption at the full context length at every step, repeated captions encoded again; the
teacher looks at every replay batch anew; teacher and anchor are two copies; the weight penalty goes through autograd. Written
from METHODS 3 on open_clip's own forward passes. tests/benchmarks replays the golden numbers through it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FISHER_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class PlainSettings:
    """The numbers of the objective and of AdamW; the defaults are the paper's. `consolidation_weight` 0 leaves the penalty out."""

    label_smoothing: float = 0.2
    temperature: float = 2.0
    alignment_weight: float = 0.25
    consolidation_weight: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0


class PlainGift:
    """One task of GIFT over an open_clip network, which is trained in place."""

    def __init__(
        self, network: Any, class_tokens: Tensor, learning_rate: Callable[[int], float], settings: PlainSettings = PlainSettings()
    ) -> None:
        self.student = network
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.parameters = {name: parameter for name, parameter in network.named_parameters() if name != "logit_scale"}
        self.anchor = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.class_tokens = class_tokens
        self.learning_rate = learning_rate
        self.settings = settings
        self.num_steps = 0
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=0.0, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay
        )

    def step(self, images: Tensor, labels: Tensor, synthetic_images: Tensor, captions: Tensor) -> dict[str, Tensor]:
        """One update. `captions` [B, L] are the synthetic images' tokens. Returns the weighted loss terms, detached."""
        self.optimizer.param_groups[0]["lr"] = self.learning_rate(self.num_steps)
        self.num_steps += 1
        self.optimizer.zero_grad()
        terms = self._replay_terms(synthetic_images, captions)
        if self.settings.consolidation_weight:
            sum(terms.values()).backward()
            fisher = self._fisher()
            terms |= self._task_terms(images, labels)
            terms["weight_consolidation"] = self._penalty(fisher)
            (terms["cross_entropy"] + terms["weight_consolidation"]).backward()
        else:
            terms |= self._task_terms(images, labels)
            sum(terms.values()).backward()
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def _replay_terms(self, images: Tensor, captions: Tensor) -> dict[str, Tensor]:
        temperature, smoothing = self.settings.temperature, self.settings.label_smoothing
        logits = self._logits(self.student, images, captions)
        with torch.no_grad():
            teacher = self._logits(self.teacher, images, captions)
        distillation = torch.zeros((), device=logits.device)
        for ours, theirs in ((logits, teacher), (logits.T, teacher.T)):
            distillation = distillation + temperature**2 * F.cross_entropy(ours / temperature, (theirs / temperature).softmax(dim=1))
        equal = (captions[:, None] == captions[None, :]).all(dim=2).float()
        target = equal / equal.sum(dim=1, keepdim=True)
        alignment = sum(F.cross_entropy(one, target, label_smoothing=smoothing) for one in (logits, logits.T))
        return {"distillation": distillation, "alignment": self.settings.alignment_weight * alignment}

    def _task_terms(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self._logits(self.student, images, self.class_tokens)
        return {"cross_entropy": F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)}

    def _logits(self, network: Any, images: Tensor, tokens: Tensor) -> Tensor:
        image_features = F.normalize(network.encode_image(images), dim=-1)
        text_features = F.normalize(network.encode_text(tokens), dim=-1)
        return self.student.logit_scale.detach().exp() * image_features @ text_features.T

    def _fisher(self) -> dict[str, Tensor]:
        fisher = {}
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                fisher[name] = torch.full_like(parameter, FISHER_FLOOR)
                continue
            square = parameter.grad**2
            mean = square.mean()
            fisher[name] = torch.where(mean == 0, FISHER_FLOOR, square / mean)
        return fisher

    def _penalty(self, fisher: dict[str, Tensor]) -> Tensor:
        terms = [(fisher[name] * (parameter - self.anchor[name]) ** 2).sum() for name, parameter in self.parameters.items()]
        return self.settings.consolidation_weight * torch.stack(terms).sum()
