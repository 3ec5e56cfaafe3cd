"""The training step and one task's loop: the only place that steps an optimizer. `parity` replays fixtures through it."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn, Protocol

import torch

from gift_shared.errors import NonFiniteError
from gift_shared.progress import Progress
from gift_train.clip.flat_tensors import FlatLayout, FlatTensors, add_gradients, take_gradients
from gift_train.clip.model import Backbone
from gift_train.data.batches import TaskBatch
from gift_train.data.replay import ReplayBatch
from gift_train.distributed import SINGLE, STEPS_BETWEEN_SYNCS, Ranks
from gift_train.distributed.gradients import GradientSum
from gift_train.methods.base import LossTerms, Method
from gift_train.methods.consolidation import Penalty, add_penalty_gradient
from gift_train.recipes.recipe import OptimizerSettings
from gift_train.training.data_time import DataTime
from gift_train.training.step_losses import Losses, PlainLosses

Batches = Iterable[tuple[TaskBatch, ReplayBatch | None]]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warmup, then half a cosine (METHODS 1.7). The loop visits steps 0 .. total_steps; the last one has rate 0.

    lr_k = peak (k + 1) / W for k < W;   peak / 2 (1 + cos(pi (k - W) / (N - W))) from then on
    With N <= W, an epoch shorter than the warmup, there is no half cosine and the rate rises to the last step.
    """

    peak: float  # learning rate per optimizer update
    warmup_steps: int  # W
    total_steps: int  # N

    def learning_rate(self, step: int) -> float:
        """The rate of the update at zero-based `step`."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.total_steps <= self.warmup_steps:
            return self.peak
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)))


def build_optimizer(parameters: Mapping[str, torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """A new AdamW over these parameters, none too, without moments; every step sets its learning rate."""
    return torch.optim.AdamW(
        [{"params": list(parameters.values())}],
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,  # one kernel per step; the parity numbers hold with it
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one task's steps work on. `compiled`: what computes their losses, if not the method as it is."""

    method: Method
    student: Backbone
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ranks: Ranks = SINGLE
    compiled: Losses | None = None

    @cached_property
    def losses(self) -> Losses:
        """The two losses of a step."""
        return PlainLosses(self.method, self.student) if self.compiled is None else self.compiled

    @cached_property
    def gradient_sum(self) -> GradientSum:
        """Adds up the ranks' gradients."""
        return GradientSum(self.ranks, self.parameters.values(), may_vary=self.method.gradients_may_vary)

    @cached_property
    def layout(self) -> FlatLayout:
        """The places of all gradients in one buffer."""
        return FlatLayout(self.parameters)


class Callbacks(Protocol):
    """Where a task's loop writes to."""

    def log(self, step: int, learning_rate: float, terms: Mapping[str, float]) -> None:
        """Note one step."""

    def save(self, next_step: int, training: Training) -> None:
        """Keep the whole state, so that `next_step` can be the first after a restart."""

    def must_leave(self, step: int) -> bool:
        """Whether the run was told to leave, asked after every step; the same answer on every rank."""

    def leave(self, next_step: int) -> NoReturn:
        """End the run here, all of it saved. Raises Preempted."""


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often what is done, in steps; and after how many minutes since the last time the state is saved besides."""

    log_every: int
    checkpoint_every: int
    checkpoint_minutes: float | None = None


class CheckpointTimer:
    """When the state is due to be saved: every n steps, and when m minutes of wall clock have passed. Changes no number.

    On several ranks the minutes are the main one's, asked for now and then: a save reads the terms, so a rank that saved alone would
    be alone to find one non-finite, and leave the others waiting.
    """

    def __init__(self, intervals: Intervals, ranks: Ranks = SINGLE) -> None:
        self._ranks = ranks
        self._every = intervals.checkpoint_every
        self._seconds = math.inf if intervals.checkpoint_minutes is None else 60 * intervals.checkpoint_minutes
        self._saved = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`. Asked after every step by every rank; the same answer on all of them."""
        return (step + 1) % self._every == 0 or self._have_minutes_passed(step)

    def restart(self) -> None:
        """The state was saved now."""
        self._saved = time.monotonic()

    def _have_minutes_passed(self, step: int) -> bool:
        if self._seconds == math.inf or (self._ranks.world_size > 1 and step % STEPS_BETWEEN_SYNCS):
            return False
        return self._ranks.any_rank(self._ranks.is_main and time.monotonic() - self._saved >= self._seconds)


def train_task(training: Training, batches: Batches, first_step: int, intervals: Intervals, callbacks: Callbacks, label: str) -> float:
    """One task from `first_step` to its last step, logged and saved as due, with its progress on stderr.

    Returns: the share of the time that steps waited for their batches, fraction.
    Raises: NonFiniteError at the first log or save after a term went wrong, before anything of it is saved; Preempted after the
    step at which the run was told to leave, unless it was the last: then the task is done.
    """
    recorder, clock, waiting = TermRecorder(label), CheckpointTimer(intervals, training.ranks), DataTime()
    last_step = training.schedule.total_steps
    with Progress(label, last_step + 1, "step", done=first_step) as progress:
        for step, terms in train_steps(training, waiting.timed(batches), first_step):
            recorder.add(step, terms)
            progress.advance()
            leaves = callbacks.must_leave(step) and step < last_step
            saves = leaves or (clock.is_due(step) and step < last_step)
            if not saves and not is_due(step, intervals.log_every, last_step):
                continue
            for logged, values in recorder.flush():
                if is_due(logged, intervals.log_every, last_step):
                    callbacks.log(logged, training.schedule.learning_rate(logged), values)
                    loss = f"loss {sum(values.values()):.3f}, " if values else ""
                    progress.note(f"{loss}waited {waiting.share:.0%}")
            if saves:
                callbacks.save(step + 1, training)
                clock.restart()
            if leaves:
                callbacks.leave(step + 1)
    return waiting.share


def train_steps(training: Training, batches: Batches, first_step: int = 0) -> Iterator[tuple[int, LossTerms]]:
    """Make one optimizer update per batch and yield (step, its detached terms) after each."""
    for step, (task_batch, replay_batch) in enumerate(batches, start=first_step):
        for group in training.optimizer.param_groups:
            group["lr"] = training.schedule.learning_rate(step)
        terms = training_step(training, task_batch, replay_batch)
        training.method.after_step(training.student, step)
        yield step, terms


def training_step(training: Training, task_batch: TaskBatch, replay_batch: ReplayBatch | None) -> LossTerms:
    """One optimizer update. The replay loss is differentiated first and alone, because a Fisher may be read from it.

    If one is, its gradient is taken apart, and the task's does not have to be added to it tensor by tensor. On several ranks all have the
    same terms and, once summed, the same gradients; so their weights stay the same. Sums travel while the task's loss is computed.
    """
    method, student, parameters, losses = training.method, training.student, training.parameters, training.losses
    training.optimizer.zero_grad(set_to_none=True)
    losses.begin_step()
    replay_gradient, wait = None, None
    with student.weights_prepared_once():
        replay_terms = backward(losses.replay(replay_batch) if replay_batch is not None else LossTerms())
        if method.reads_replay_gradient:
            replay_gradient = take_gradients(parameters, training.layout)
            wait = training.ranks.start_sum(replay_gradient.buffer)
        with training.gradient_sum.during_backward():
            task_terms = backward(losses.task(task_batch))
    if replay_gradient is not None and wait is not None:
        wait()
        method.after_replay_backward(student, replay_gradient)
    penalty_terms = add_penalty(parameters, method.penalty(student), replay_gradient)
    method.before_update(student)
    training.optimizer.step()
    return task_terms | replay_terms | penalty_terms


def backward(terms: LossTerms) -> LossTerms:
    """Add the gradient of the terms' sum to every `.grad`; no terms, nothing to do. Returns them detached."""
    if terms:
        total = torch.stack(list(terms.values())).sum()
        if total.requires_grad:  # not on a rank whose rows do not count, see Ranks.share
            total.backward()
    return terms.detached()


def add_penalty(
    parameters: Mapping[str, torch.nn.Parameter], penalty: Penalty | None, replay_gradient: FlatTensors | None = None
) -> LossTerms:
    """Add to every `.grad` the replay loss's gradient, if it was taken apart, and a penalty's in closed form; its value is a term."""
    if penalty is not None:
        return LossTerms(**{penalty.name: add_penalty_gradient(parameters, penalty, replay_gradient)})
    if replay_gradient is not None:
        add_gradients(parameters, replay_gradient.views)
    return LossTerms()


class TermRecorder:
    """Collects every step's terms on the device and reads them in one transfer, so the host waits only when it is due.

    Every step is checked, but late: a non-finite term is told at the next `flush`, before anything is saved, naming the first
    step and term that went wrong.
    """

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        self._steps: list[int] = []
        self._terms: list[LossTerms] = []

    def add(self, step: int, terms: LossTerms) -> None:
        self._steps.append(step)
        self._terms.append(terms)

    def flush(self) -> list[tuple[int, dict[str, float]]]:
        """(step, terms as numbers) of every step since the last flush. Raises NonFiniteError."""
        if not self._steps:
            return []
        found = [term.float() for terms in self._terms for term in terms.values()]
        flat = torch.stack(found).tolist() if found else []
        rows, start = [], 0
        for step, terms in zip(self._steps, self._terms, strict=True):
            rows.append((step, dict(zip(terms, flat[start : start + len(terms)], strict=True))))
            start += len(terms)
        self._steps, self._terms = [], []
        for step, values in rows:
            require_finite(self.task_name, step, values)
        return rows


def require_finite(task_name: str, step: int, values: Mapping[str, float]) -> None:
    """Raises NonFiniteError, naming task, step and term, if a loss term is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{task_name}, step {step}: the loss term {name!r} is {value}. Nothing after the last checkpoint was saved."
                " Lower the learning rate or that term's weight, or look at the images of this task."
            )


def is_due(step: int, every: int, last_step: int) -> bool:
    """Whether something done every `every` steps, and at the last one, is due after `step`."""
    return step % every == 0 or step == last_step
