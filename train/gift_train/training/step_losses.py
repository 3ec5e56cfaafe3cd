"""The two losses of a step as the loop asks for them."""

from dataclasses import dataclass
from typing import Protocol

from gift_train.clip.model import Backbone
from gift_train.data.batches import TaskBatch
from gift_train.data.replay import ReplayBatch
from gift_train.distributed import Ranks
from gift_train.methods.base import LossTerms, Method


class Losses(Protocol):
    """A method's two losses."""

    def begin_step(self) -> None:
        """A step begins: gradients of the one before are gone."""

    def task(self, batch: TaskBatch) -> LossTerms:
        """See `Method.task_loss`."""

    def replay(self, batch: ReplayBatch) -> LossTerms:
        """See `Method.replay_loss`."""


def compiled_losses(method: Method, student: Backbone, ranks: Ranks) -> Losses:
    """A method's losses as compiled graphs, for all tasks of a run. Imports torch's compiler, which takes seconds."""
    from gift_train.training.compiled_losses import CompiledLosses

    return CompiledLosses(method, student, ranks)


@dataclass(frozen=True)
class PlainLosses:
    """As the method has them, operator by operator."""

    method: Method
    student: Backbone

    def begin_step(self) -> None:
        """Nothing is to be done."""

    def task(self, batch: TaskBatch) -> LossTerms:
        return self.method.task_loss(self.student, batch)

    def replay(self, batch: ReplayBatch) -> LossTerms:
        return self.method.replay_loss(self.student, batch)
