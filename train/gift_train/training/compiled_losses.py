"""The two losses of a step, each with its forward and its backward pass as one compiled graph; on a GPU these are CUDA graphs.

In a graph are both towers' passes, the similarities and the terms. Outside stays what looks at a batch on the host: trees, the teacher's
features, targets (`Method.task_inputs`, `Method.replay_inputs`). Values and gradients are those of the plain losses, up to rounding.

Code is made for one shape at a time, so there are few: texts pass as trees of few sizes (`Texts.in_few_shapes`), and a batch that is
smaller than others, as the last of an epoch is, takes the plain way. So does a loss of which no graph can be made, which is told once.

Imports torch's compiler, which takes seconds: for runs that ask for it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from gift_train.clip.compiler import told_by_compiler
from gift_train.clip.model import Backbone
from gift_train.data.batches import TaskBatch
from gift_train.data.replay import ReplayBatch
from gift_train.distributed import Ranks
from gift_train.methods.base import LossTerms, Method
from gift_train.methods.texts import Texts

MOST_OF_ONE_SHAPE = 4  # graphs: beyond them a loss depends on numbers that are no tensors and change, and every step may compile

Terms = Callable[[Method, Backbone, Any], dict[str, Tensor]]

_log = logging.getLogger(__name__)
_traced: list[None] = []  # one for each graph that this process has made


class CompiledLosses:
    """A method's losses as graphs. One for a whole run, whose tasks share what is compiled."""

    def __init__(self, method: Method, student: Backbone, ranks: Ranks) -> None:
        """Compiles nothing yet: that happens at the first batch of each shape. `Backbone.compile_blocks` allows for enough of them."""
        self._method, self._student = method, student
        self._is_on_gpu = student.device.type == "cuda"
        self._task = _Graph("task loss", _task_terms, self._is_on_gpu)
        self._replay = _Graph("replay loss", _replay_terms, self._is_on_gpu)
        own = type(method)
        self._reasons = {
            self._task: _why_not(method, ranks, is_in_parts=own.task_loss is Method.task_loss),
            self._replay: _why_not(method, ranks, is_in_parts=own.replay_loss is Method.replay_loss),
        }

    def begin_step(self) -> None:
        """Lets CUDA graphs write over what they gave in the step before: terms, which are copied, and gradients, which go."""
        if self._is_on_gpu:
            self._student.network.zero_grad(set_to_none=True)  # also of what the method does not train
            torch.compiler.cudagraph_mark_step_begin()

    def task(self, batch: TaskBatch) -> LossTerms:
        if not self._takes(self._task, len(batch.labels)):
            return self._method.task_loss(self._student, batch)
        inputs = self._method.task_inputs(self._student, batch)
        return self._terms(self._task, inputs) or self._method.task_loss(self._student, batch)

    def replay(self, batch: ReplayBatch) -> LossTerms:
        if not self._takes(self._replay, len(batch.sample_keys)):
            return self._method.replay_loss(self._student, batch)
        inputs = self._method.replay_inputs(self._student, batch)
        return self._terms(self._replay, inputs) or self._method.replay_loss(self._student, batch)

    def _takes(self, graph: _Graph, num_images: int) -> bool:
        return graph.takes(num_images, self._reasons[graph] or self._student.why_not_whole())

    def _terms(self, graph: _Graph, inputs: Any) -> LossTerms:
        """None if there is no loss, or no graph of it: then the plain one is asked, and finds the same."""
        if inputs is None:
            return LossTerms()
        if not dataclasses.is_dataclass(inputs):
            graph.give_up(f"its inputs are a {type(inputs).__name__} and no dataclass (docs/add_a_method.md)")
            return LossTerms()
        terms = graph(self._method, self._student, in_few_shapes(inputs))
        if self._is_on_gpu:
            terms = {name: term.clone() for name, term in terms.items()}  # they are read when they are logged, steps later
        return LossTerms(**terms)


class _Graph:
    """One loss: of what is it compiled, and whether it still is."""

    def __init__(self, name: str, terms: Terms, is_on_gpu: bool) -> None:
        self._name = name
        mode = "reduce-overhead" if is_on_gpu else None  # CUDA graphs
        self._compiled: Terms | None = torch.compile(terms, fullgraph=True, dynamic=False, mode=mode)
        self._largest = 0
        self._made: Counter[tuple[torch.Size, ...]] = Counter()

    def takes(self, num_images: int, reason: str | None) -> bool:
        """Whether a batch of so many images goes through the graph; not if there is a reason against it."""
        if self._compiled is not None and reason is not None:
            self.give_up(reason)
        if self._compiled is None:
            return False
        self._largest = max(self._largest, num_images)
        return num_images == self._largest

    def give_up(self, reason: str) -> None:
        """Compile nothing from now on."""
        self._compiled = None
        _log.warning("--compile-step: the %s is not compiled whole, its blocks are as by --compile: %s.", self._name, reason)

    def __call__(self, method: Method, student: Backbone, inputs: Any) -> dict[str, Tensor]:
        """The terms; nothing if there are none, or if they turn out not to be a graph."""
        assert self._compiled is not None
        before = len(_traced)
        try:
            terms = self._compiled(method, student, inputs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self.give_up(told_by_compiler(error))
            return {}
        if len(_traced) > before:
            shapes = tuple(tensor.shape for tensor in tensors_of(inputs))
            self._made[shapes] += 1
            if self._made[shapes] > MOST_OF_ONE_SHAPE:
                self.give_up("it depends on numbers that change, as a count of steps does, and would be compiled for each")
        return terms


def _why_not(method: Method, ranks: Ranks, *, is_in_parts: bool) -> str | None:
    """What is known before there is a batch."""
    if ranks.world_size > 1:
        return "several processes share each batch"
    return None if is_in_parts else f"method {method.name!r} gives it whole, not as inputs and terms (docs/add_a_method.md)"


def _task_terms(method: Method, student: Backbone, inputs: Any) -> dict[str, Tensor]:
    _note_trace()
    terms = method.task_terms(student, inputs)
    return {name: terms[name] for name in terms}


def _replay_terms(method: Method, student: Backbone, inputs: Any) -> dict[str, Tensor]:
    _note_trace()
    terms = method.replay_terms(student, inputs)
    return {name: terms[name] for name in terms}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # so it is called while a graph is made, and is not in it
def _note_trace() -> None:
    _traced.append(None)


def num_graphs() -> int:
    """How many graphs this process has made of losses, each one of a forward and one of a backward pass."""
    return len(_traced)


def in_few_shapes(inputs: Any) -> Any:
    """A loss's inputs, their texts in few shapes."""
    texts = {name: value.in_few_shapes() for name, value in _fields(inputs) if isinstance(value, Texts)}
    return dataclasses.replace(inputs, **texts)


def tensors_of(inputs: Any) -> Iterator[Tensor]:
    """All tensors of a loss's inputs."""
    for _, value in _fields(inputs):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Texts) and value.tree is not None:
            for part in value.tree.parts:
                yield from (part.nodes, part.ends)


def _fields(inputs: Any) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(inputs, field.name)) for field in dataclasses.fields(inputs))
