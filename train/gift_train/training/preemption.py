"""Leaving a run because the scheduler asked for the machine: at a safe place, and on all ranks at the same one."""

from typing import NoReturn

from gift_shared.errors import Preempted
from gift_shared.preemption import PreemptionNotice
from gift_train.distributed import SINGLE, STEPS_BETWEEN_SYNCS, Ranks


class PreemptionCheck:
    """Whether the run was told to leave. On several ranks the word of any of them is that of all."""

    def __init__(self, notice: PreemptionNotice, ranks: Ranks = SINGLE) -> None:
        self._notice = notice
        self._ranks = ranks

    def is_due(self, step: int) -> bool:
        """Asked after every step of a task by every rank; the same answer on all of them."""
        if self._ranks.world_size == 1:
            return self._notice.has_come
        return step % STEPS_BETWEEN_SYNCS == 0 and self._ranks.any_rank(self._notice.has_come)

    def check(self, what_is_left: str) -> None:
        """Leave if told to, at a place that every rank passes. Raises Preempted."""
        if self._ranks.any_rank(self._notice.has_come):
            self.leave(what_is_left)

    def check_alone(self, what_is_left: str) -> None:
        """Leave if told to and this is the only rank, which may do so wherever it likes. Raises Preempted."""
        if self._ranks.world_size == 1:
            self.check(what_is_left)

    def leave(self, what_is_left: str) -> NoReturn:
        """Raise Preempted, which says what is left to do."""
        self._notice.obey(what_is_left)
        raise Preempted(f"Stopped with another process of this run: {what_is_left}. Nothing is lost; the same command goes on.")
