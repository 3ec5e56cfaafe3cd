"""Mixtures of small experts beside the MLP of every transformer block, chosen by one router per task (METHODS 2.8).

    h   = x + attention(ln_1(x))
    out = h + mlp(ln_2(h)) + sum_e G_e(h) E_e(h)

A mixture hangs on its block by hooks, so the block's own weights keep their names and its forward pass stays open_clip's.
What training draws, noise and dropout, is drawn for all sequences of a batch, so that ranks and micro-batches that share it get what one
pass would draw. A pass that is only computed again for the backward pass draws the same, and counts and measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gift_shared.errors import ConfigError
from gift_train.clip.recompute import is_repetition, micro_batch
from gift_train.distributed import SINGLE, Ranks

NOISE_FLOOR = 0.01  # added to every standard deviation of the gate noise


@dataclass(frozen=True, kw_only=True)
class MixtureSettings:
    """Shape and randomness of a mixture.

    top_k: experts a sequence passes. bottleneck: width inside an expert. expert_scale: factor on an expert's output.
    dropout: fraction, in training, inside an expert. gate_noise: factor on the router's learned noise in training; 1 is the
    method, 0 silences it.
    """

    num_experts: int
    top_k: int
    bottleneck: int
    expert_scale: float
    dropout: float
    gate_noise: float

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(f"top_k must be from 1 to num_experts = {self.num_experts}, found {self.top_k}.")
        if self.bottleneck < 1 or not 0 <= self.dropout < 1 or self.gate_noise < 0:
            raise ConfigError("bottleneck must be 1 or more, dropout from 0 to below 1, gate_noise 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How many sequences a training batch has in all, of which each rank passes its share."""

    num_images: int
    num_texts: int
    ranks: Ranks = SINGLE


@dataclass(frozen=True)
class Gates:
    """How some sequences of a batch were routed: logits [B, E] clean and noisy, the noise's deviation, and the choice [B, k]."""

    clean: Tensor
    noisy: Tensor
    deviation: Tensor | None
    chosen: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class Passage:
    """What is encoded, from `Route.through` on until its end: through which router, and in training what it draws and leaves."""

    route: Route
    router: int
    training: Batch | None = None  # gate noise, dropout, and counting; the modules' own mode decides nothing
    measures_balance: bool = False
    gates: dict[Mixture, list[Gates]] = field(default_factory=dict)  # of each mixture passed, by micro-batch, if measured

    def balances(self) -> list[Tensor]:
        """How unevenly each mixture used its experts for the whole batch, in the order that they were passed. All ranks ask together."""
        return [mixture.balance(parts) for mixture, parts in self.gates.items()]


# A context variable, so that what a passage encoded is recomputed as on its first time, although the passage has ended by then.
_passage: ContextVar[Passage | None] = ContextVar("passage", default=None)


class Route:
    """What all mixtures of a model do at the moment. Outside a passage nothing: the model is plain CLIP."""

    @property
    def passage(self) -> Passage | None:
        """The passage that is going on through these mixtures."""
        passage = _passage.get()
        return passage if passage is not None and passage.route is self else None

    @contextmanager
    def through(self, router: int | None, *, training: Batch | None = None, measures_balance: bool = False) -> Iterator[Passage | None]:
        """Send what is encoded inside through this router, through none of them if None; plain CLIP again afterwards."""
        passage = None
        if router is not None:
            passage = Passage(route=self, router=router, training=training, measures_balance=measures_balance)
        before = _passage.set(passage)
        try:
            yield passage
        finally:
            _passage.reset(before)
            if passage is not None:
                passage.gates.clear()  # they hold graphs, which hold the passage


class Expert(nn.Module):
    """Linear(d, r) -> ReLU -> dropout -> Linear(r, d), times `expert_scale`. A new expert outputs 0."""

    def __init__(self, width: int, settings: MixtureSettings) -> None:
        super().__init__()
        self.down_proj = nn.Linear(width, settings.bottleneck)
        self.up_proj = nn.Linear(settings.bottleneck, width)
        self.scale = settings.expert_scale
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        for zero in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: Tensor, dropout: Tensor | None = None) -> Tensor:
        """[N, L, d] -> [N, L, d]; `dropout` [N, L, r] holds the factors 0 and 1 / (1 - fraction) in training."""
        inner = F.relu(self.down_proj(hidden))
        return torch.as_tensor(self.up_proj(inner if dropout is None else inner * dropout) * self.scale)


class Mixture(nn.Module):
    """The experts of one block, shared by all tasks, and a router [d, E] with its noise [d, E] for each task.

    `counts` [E]: how often each expert was among a sequence's chosen ones in training since the task began. A rank counts its
    own sequences; the method adds them up.
    `frozen`: experts that learn no more. Both belong to the method's state, not to the weights.
    """

    def __init__(self, width: int, num_routers: int, settings: MixtureSettings, route: Route, *, reads_images: bool) -> None:
        super().__init__()
        self.reads_images = reads_images
        self.settings = settings
        self.route = route
        self.experts = nn.ModuleList(Expert(width, settings) for _ in range(settings.num_experts))
        self.gate = nn.ParameterList(torch.zeros(width, settings.num_experts) for _ in range(num_routers))
        self.noise = nn.ParameterList(torch.zeros(width, settings.num_experts) for _ in range(num_routers))
        self.frozen: frozenset[int] = frozenset()
        self.counts = torch.zeros(settings.num_experts, dtype=torch.long)
        self._hidden: Tensor | None = None

    def attach(self, block: nn.Module) -> None:
        """Hang the mixture on a residual attention block: h is what enters `ln_2`."""
        device = block.ln_2.weight.device  # type: ignore[union-attr]
        block.mixture, self.counts = self.to(device), self.counts.to(device)  # type: ignore[arg-type]
        block.ln_2.register_forward_pre_hook(self._keep_hidden)  # type: ignore[union-attr]
        block.register_forward_hook(self._add_output)

    def _keep_hidden(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        if self.route.passage is not None:
            self._hidden = inputs[0]

    def _add_output(self, _: nn.Module, __: object, output: Tensor) -> Tensor:
        if self.route.passage is None:
            return output
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return output + torch.as_tensor(self(hidden))

    def forward(self, hidden: Tensor) -> Tensor:
        """sum_e G_e E_e(h) for h [B, L, d]. One gate per sequence, from its first token, applied to all its tokens."""
        chosen, weights = self._choose(hidden[:, 0])
        dropout = self._dropout(hidden)
        outputs = self._expert_by_expert(hidden, chosen, dropout) if self._may_wait(hidden) else self._all_at_once(hidden, chosen, dropout)
        if self._training is not None and self._training.ranks.counts(self._num_sequences) and not is_repetition():
            self.counts = self.counts + self._is_chosen(chosen).sum(dim=0, dtype=torch.long)
        by_sequence = outputs.unflatten(0, chosen.shape)
        return torch.as_tensor((weights[:, :, None, None] * by_sequence).sum(dim=1))

    def _may_wait(self, hidden: Tensor) -> bool:
        """Whether asking how many sequences an expert got costs nothing: on a CPU, where they are known as soon as they are asked for."""
        return hidden.device.type == "cpu"

    def _expert_by_expert(self, hidden: Tensor, chosen: Tensor, dropout: Tensor | None) -> Tensor:
        """Each chosen expert's output for its sequence, [B k, L, d]: sequences sorted by expert, so each runs once over all its own."""
        order = chosen.flatten().argsort(stable=True)
        on_each = torch.bincount(chosen.flatten(), minlength=self.settings.num_experts).tolist()
        parts = hidden[order // self.settings.top_k].split(on_each)
        dropouts = [None] * len(parts) if dropout is None else dropout[order].split(on_each)
        # An expert without a sequence is left out: its gradient stays None and the optimizer passes it over.
        work = zip(self.experts, parts, dropouts, strict=True)
        return torch.cat([expert(part, kept) for expert, part, kept in work if len(part)])[order.argsort()]

    def _all_at_once(self, hidden: Tensor, chosen: Tensor, dropout: Tensor | None) -> Tensor:
        """The same without a look at the choice, which would wait for the device: each sequence passes copies of its experts' weights.

        The copies are a product with ones and zeros, whose gradient is a sum in one order. An expert without a sequence gets gradient 0.
        """
        is_chosen = self._is_chosen(chosen.flatten()[:, None]).to(hidden.dtype)

        def layer(name: str, rows: Tensor) -> Tensor:
            layers = [getattr(expert, name) for expert in self.experts]
            matrices, biases = torch.stack([one.weight for one in layers]), torch.stack([one.bias for one in layers])
            weight = (is_chosen @ matrices.flatten(1)).unflatten(1, matrices.shape[1:])
            return torch.baddbmm((is_chosen @ biases)[:, None], rows, weight.transpose(1, 2))

        inner = F.relu(layer("down_proj", hidden.repeat_interleave(self.settings.top_k, dim=0)))
        return layer("up_proj", inner if dropout is None else inner * dropout) * self.settings.expert_scale

    def _is_chosen(self, chosen: Tensor) -> Tensor:
        """[B, k] -> [B, E], 1.0 and 0.0."""
        return torch.zeros(len(chosen), self.settings.num_experts, device=chosen.device).scatter_(1, chosen, 1.0)

    def _choose(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Query [B, d] -> the chosen experts [B, k] and their weights [B, k], softmax over the chosen alone.

        clean = q W_gate;   noisy = clean + gate_noise N(0, 1) (softplus(q W_noise) + 0.01) in training, = clean at test time
        """
        passage = self.route.passage
        assert passage is not None
        noisy = clean = query @ self.gate[passage.router]
        deviation = None
        if passage.training is not None and self.settings.gate_noise > 0:
            deviation = self.settings.gate_noise * (F.softplus(query @ self.noise[passage.router]) + NOISE_FLOOR)
            noisy = clean + self._drawn("noise", partial(_normal, clean)) * deviation
        values, chosen = noisy.topk(self.settings.top_k, dim=1)
        weights = values.softmax(dim=1)
        if passage.measures_balance and passage.training is not None and not is_repetition():
            passage.gates.setdefault(self, []).append(Gates(clean, noisy, deviation, chosen, weights))
        return chosen, weights

    def balance(self, parts: Sequence[Gates]) -> Tensor:
        """How unevenly the whole batch used the experts (`balance`), of which these are the rank's gates, by micro-batch."""
        assert self._training is not None
        ranks, num_rows = self._training.ranks, self._num_sequences

        def whole(rows: Sequence[Tensor]) -> Tensor:
            return ranks.all_gather(torch.cat(list(rows)), num_rows)

        clean, noisy = whole([part.clean for part in parts]), whole([part.noisy for part in parts])
        chosen, weights = whole([part.chosen for part in parts]), whole([part.weights for part in parts])
        deviations = [part.deviation for part in parts if part.deviation is not None]
        return balance(clean, noisy, whole(deviations) if deviations else None, chosen, weights)

    def _dropout(self, hidden: Tensor) -> Tensor | None:
        """Factors [B k, L, r] on the inside of experts, a row for each sequence and expert it chose; None outside training."""
        fraction, width = self.settings.dropout, self.settings.bottleneck
        if self._training is None or fraction == 0:
            return None
        shape = (self.settings.top_k, hidden.shape[1], width)
        return self._drawn("dropout", partial(_kept, hidden, shape, fraction)).flatten(0, 1)

    def _drawn(self, what: str, draw: Callable[[int, torch.Generator | None], Tensor]) -> Tensor:
        """The rank's rows of what is drawn for all sequences of the batch; of these those that pass now.

        The first micro-batch notes where the generator stood, so that the others, and repetitions, see the same draw.
        """
        assert self._training is not None
        part, num_rows = micro_batch(), self._num_sequences
        own = self._training.ranks.share(num_rows)
        if part is None:
            return draw(num_rows, None)[own]
        device, key = self.counts.device, (self, what)
        if key not in part.shared:
            part.shared[key] = _generator_state(device)
            return draw(num_rows, None)[own][part.rows]
        generator = torch.Generator(device)
        generator.set_state(part.shared[key])
        return draw(num_rows, generator)[own][part.rows]

    @property
    def _training(self) -> Batch | None:
        passage = self.route.passage
        return None if passage is None else passage.training

    @property
    def _num_sequences(self) -> int:
        assert self._training is not None
        return self._training.num_images if self.reads_images else self._training.num_texts

    def clear_unused(self, num_chosen: Sequence[int]) -> None:
        """Take the gradient of experts that no sequence of the batch chose, so that the optimizer passes them over."""
        for expert, count in zip(self.experts, num_chosen, strict=True):
            if count == 0:
                expert.zero_grad(set_to_none=True)

    @torch.no_grad()
    def freeze_most_used(self) -> None:
        """Freeze the top_k most counted experts for good; the first of equals. One frozen before is not replaced by another."""
        used = self.counts.argsort(descending=True, stable=True)[: self.settings.top_k]
        self.set_frozen(self.frozen | set(used.tolist()))

    def set_frozen(self, frozen: frozenset[int]) -> None:
        """Freeze these experts and let all others learn."""
        self.frozen = frozen
        for number, expert in enumerate(self.experts):
            expert.requires_grad_(number not in frozen)


def _normal(like: Tensor, num_rows: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(num_rows, like.shape[1], dtype=like.dtype, device=like.device, generator=generator)


def _kept(like: Tensor, shape: tuple[int, ...], fraction: float, num_rows: int, generator: torch.Generator | None) -> Tensor:
    return like.new_empty(num_rows, *shape).bernoulli_(1 - fraction, generator=generator).div_(1 - fraction)


def _generator_state(device: torch.device) -> Tensor:
    """Where the device's own generator stands."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def balance(clean: Tensor, noisy: Tensor, deviation: Tensor | None, chosen: Tensor, weights: Tensor) -> Tensor:
    """How unevenly a batch uses the experts: cv^2(sum_b G) + cv^2(load), cv^2 = variance / mean^2; 0 if all are used alike.

    load_e = sum_b P(e is chosen when its own noise is drawn again) = sum_b Phi((clean_e - t_e) / deviation_e), where t_e is the
    k-th largest noisy logit among the others. Without noise (`deviation` None): how often e was chosen.

    Args:
        clean, noisy, deviation: [B, E]; chosen, weights: [B, k].
    Source: Shazeer et al., arXiv 1701.06538, appendix A; METHODS 2.8 for its place here.
    """
    wide = torch.promote_types(clean.dtype, torch.float32)  # under bf16 some are and some are not, by device
    clean, noisy, weights = clean.to(wide), noisy.to(wide), weights.to(wide)
    importance = torch.zeros_like(clean).scatter(1, chosen, weights).sum(dim=0)
    is_chosen = torch.zeros_like(clean).scatter(1, chosen, 1.0)
    top_k, num_experts = chosen.shape[1], clean.shape[1]
    if deviation is None or top_k == num_experts:
        return _squared_variation(importance) + _squared_variation(is_chosen.sum(dim=0))
    ranked = noisy.topk(top_k + 1, dim=1).values
    threshold = torch.where(is_chosen > 0, ranked[:, top_k:], ranked[:, top_k - 1 : top_k])
    load = torch.special.ndtr((clean - threshold) / deviation).sum(dim=0)
    return _squared_variation(importance) + _squared_variation(load)


def _squared_variation(values: Tensor) -> Tensor:
    return values.var() / (values.mean() ** 2 + 1e-10) if len(values) > 1 else values.new_zeros(())


def attach_mixtures(blocks: Mapping[str, nn.Module], num_routers: int, settings: MixtureSettings, route: Route) -> dict[str, Mixture]:
    """A mixture with its own experts and routers on each block; by the block's name. They take part once `route` names a router."""
    mixtures = {}
    for name, block in blocks.items():
        width = int(block.ln_2.weight.shape[0])  # type: ignore[union-attr, index]
        mixtures[name] = Mixture(width, num_routers, settings, route, reads_images=name.startswith("visual."))
        mixtures[name].attach(block)
    return mixtures
