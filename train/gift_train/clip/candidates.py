"""How a classifier is asked: images first, then scores among candidates, as often as there are sets of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from gift_shared.manifests import Classes, JoinedClasses


@dataclass(frozen=True)
class Candidates:
    """The classes among which a label is looked for, as columns of all that a classifier was made for. Equal for equal tasks.

    datasets: names of the tasks whose classes they are, in order; exactly one = the task is known.
    columns: theirs, M of K; a slice where they are neighbours, so that no score has to be copied, else [M] long.
    """

    datasets: tuple[str, ...]
    columns: slice | Tensor = field(compare=False)


Answers = Callable[[Candidates], Tensor]  # candidates -> scores [B, M] of their columns; the largest is the label
Answer = Callable[[Tensor], Answers]  # images [B, 3, H, W] -> what they answer


def all_candidates(classes: Classes) -> Candidates:
    """All that a classifier of these classes was made for."""
    parts = classes.parts if isinstance(classes, JoinedClasses) else (classes,)
    return Candidates(tuple(part.name for part in parts), slice(0, len(classes.class_names)))


def answer_by_columns(scores: Callable[[Tensor], Tensor]) -> Answer:
    """For scores [B, K] that do not depend on the candidates: computed once for a batch, and columns picked."""

    def answer(images: Tensor) -> Answers:
        found = scores(images)
        return lambda candidates: found[:, candidates.columns]

    return answer
