"""Leaving a run because the scheduler asked for the machine: at a safe place, and on all ranks at the same one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from gift_shared.errors import Preempted
from gift_shared.manifests import TaskManifest
from gift_shared.preemption import PreemptionNotice
from gift_train.clip.model import Backbone
from gift_train.evaluation.evaluate import Classifies

STEPS_BETWEEN_SYNCS = 10  # on several ranks: asking all of them makes the host wait for the device


class PreemptionCheck:
    """Whether the run was told to leave. `on_any_rank` makes one answer of all ranks' own; None where there is one rank only."""

    def __init__(self, notice: PreemptionNotice, on_any_rank: Callable[[bool], bool] | None = None) -> None:
        self._notice = notice
        self._on_any_rank = on_any_rank

    def is_due(self, step: int) -> bool:
        """Asked after every step of a task by every rank; the same answer on all of them."""
        if self._on_any_rank is None:
            return self._notice.has_come
        return step % STEPS_BETWEEN_SYNCS == 0 and self._on_any_rank(self._notice.has_come)

    def check(self, what_is_left: str) -> None:
        """Leave if told to, at a place that every rank passes. Raises Preempted."""
        if self._notice.has_come if self._on_any_rank is None else self._on_any_rank(self._notice.has_come):
            self.leave(what_is_left)

    def check_alone(self, what_is_left: str) -> None:
        """Leave if told to and this is the only rank, which may do so wherever it likes. Raises Preempted."""
        if self._on_any_rank is None:
            self.check(what_is_left)

    def leave(self, what_is_left: str) -> NoReturn:
        """Raise Preempted, which says what is left to do."""
        self._notice.obey(what_is_left)
        raise Preempted(f"Stopped with another process of this run: {what_is_left}. Nothing is lost; the same command goes on.")

    def watching(self, method: Classifies, what_is_left: str) -> "Leaving":
        """The method to evaluate, such that evaluation ends at once when the run must leave: it is done again from its start."""
        return Leaving(method, self, what_is_left)


@dataclass(frozen=True)
class Leaving:
    """A method that asks before every dataset, and alone before every batch too, whether to leave."""

    method: Classifies
    departure: PreemptionCheck
    what_is_left: str

    def classifiers(self, student: Backbone, manifest: TaskManifest) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """The method's own classifiers. Raises Preempted when the run was told to leave."""
        self.departure.check(self.what_is_left)
        return {name: self._asking(classify) for name, classify in self.method.classifiers(student, manifest).items()}

    def _asking(self, classify: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def classify_or_leave(images: Tensor) -> Tensor:
            self.departure.check_alone(self.what_is_left)
            return classify(images)

        return classify_or_leave
