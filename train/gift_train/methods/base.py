"""What a continual-learning method is: hooks around one training step.

A method never steps an optimizer, moves the learning rate or reads a file. It returns named loss terms; `gift_train.training.loop`
differentiates and applies them. Add one of ours: `methods/<name>.py`, a recipe and a test; one of your own: docs/add_a_method.md.

A loss is made in two steps: its inputs, for which the host looks at a batch, and of them its terms, which are a function of tensors that
can be compiled as one graph. A method may also give a loss whole; it is then not compiled.

On several processes a method computes the loss of the whole batch, from features that `TaskContext.ranks` gathers. What reaches a
loss without being gathered must not be trained: it would count once for every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_shared.manifests import Classes
from gift_train.clip.candidates import Answer, answer_by_columns
from gift_train.clip.flat_tensors import FlatTensors
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import similarity_logits, zero_shot_scores
from gift_train.data.batches import ImageStream, TaskBatch
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import Draw, NoTaskSource, ReplaySource, TextSource
from gift_train.distributed import SINGLE, Ranks
from gift_train.methods.consolidation import Penalty, Weights
from gift_train.methods.losses import task_cross_entropy
from gift_train.methods.texts import Texts, class_texts


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a method may know about the task it begins. Weights lie on the student's device, tokens on the CPU.

    `replay_pass` makes one ordered pass over the replay images; None when they are too many to be worth cached.
    `task_images(n)` yields the first n training images of the task, in order and in batches.
    """

    task_name: str
    task_index: int  # zero-based
    num_steps: int  # optimizer updates of this task
    label_smoothing: float  # fraction
    class_tokens: Tensor  # [K, L], first template, label order; of all tasks at once, see `own_classes`
    reference_tokens: Tensor | None  # [N, L], see TextSource
    initial_weights: Weights  # the pretrained model's, theta_0
    replay_pass: Callable[[], Iterator[ReplayBatch]] | None
    task_images: Callable[[int], Iterator[TaskBatch]]
    is_last_task: bool = False  # no other follows, for which something would have to be kept
    own_images: ImageStream | None = None  # the task's training images, for what a method trains beside the student
    no_task_images: ImageStream | None = None  # see NoTaskSource
    ranks: Ranks = SINGLE  # the processes that share the task's batches
    classes: Classes | None = None  # the task's, by their datasets and labels there; of all tasks at once, those of each
    own_classes: Tensor | None = None  # [T, K] bool, if all tasks are learned at once: the classes an image of each dataset may be of


class LossTerms(Mapping[str, Tensor]):
    """Named, already weighted scalars. The objective is the sum of all of them; a name cannot be given twice."""

    def __init__(self, **terms: Tensor) -> None:
        self._terms = terms

    def __getitem__(self, name: str) -> Tensor:
        return self._terms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def __or__(self, other: LossTerms) -> LossTerms:
        for name in other:
            if name in self._terms:
                raise ValueError(f"the loss term {name!r} is given twice")
        return LossTerms(**self._terms, **other._terms)

    def detached(self) -> LossTerms:
        """The same terms without their graphs."""
        return LossTerms(**{name: term.detach() for name, term in self._terms.items()})


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """What `Method.task_terms` is made of: tensors on the student's device, and the class prompts."""

    images: Tensor  # [B or this rank's share, 3, H, W]
    labels: Tensor  # [B]
    classes: Texts


class Method:
    """Plain finetuning; methods override what they do differently. Inherit from this class and stop."""

    name: ClassVar[str]
    summary: ClassVar[str]
    trains: ClassVar[bool] = True
    trains_weights: ClassVar[bool] = True  # False: its steps look at batches, and change what the method keeps and no parameter
    replay: ClassVar[ReplaySource] = ReplaySource.NONE
    texts: ClassVar[TextSource] = TextSource.NONE
    keeps_fisher: bool = False  # whether `last_fisher` will be asked; it costs the memory of the weights
    gradients_may_vary: ClassVar[bool] = False  # whether the batch decides which parameters have a gradient at all

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """What the recipe's [method_config] must hold."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def replay_source(self) -> ReplaySource:
        """Which images are replayed; the class's `replay` unless the method's settings choose."""
        return self.replay

    @property
    def encodes_captions(self) -> bool:
        """Whether the student encodes the captions of each batch of synthetic images: their tree is then made with the batch."""
        return False

    def text_source(self) -> TextSource:
        """Which texts `TaskContext.reference_tokens` holds; the class's `texts` unless the method's settings choose."""
        return self.texts

    def num_reference_images(self) -> int | None:
        """For ReplaySource.REFERENCE: the size of the subset to draw; None takes all there are."""
        return None

    def no_task_source(self) -> NoTaskSource:
        """Which images `TaskContext.no_task_images` holds."""
        return NoTaskSource.NONE

    def mixture(self) -> Draw | None:
        """How images of all tasks are mixed, for a method that learns them at once; None: one task after the other.

        Such a method has one task, of all classes: `TaskBatch.datasets` and `TaskContext.own_classes` tell them apart.
        """
        return None

    def check_model(self, student: Backbone) -> None:
        """Whether the method can train this model; asked before its weights are read. Raises ConfigError."""

    def prepare(self, student: Backbone, num_tasks: int) -> None:
        """Once per run, before any weights are loaded: add parameters to the student (adapters, a router per task)."""

    def trainable(self, student: Backbone) -> dict[str, torch.nn.Parameter]:
        """The parameters this method updates, by name: all but `logit_scale` unless overridden, none if it trains no weights."""
        return student.parameters() if self.trains_weights else {}

    def begin_task(self, context: TaskContext, student: Backbone) -> None:
        """The student holds the weights handed over by the previous task: freeze teachers, remember anchors.

        Called again with the same weights and random state when a run resumes inside the task.
        """
        self.context = context

    def task_loss(self, student: Backbone, batch: TaskBatch) -> LossTerms:
        """Loss on the current task's images."""
        inputs = self.task_inputs(student, batch)
        return LossTerms() if inputs is None else self.task_terms(student, inputs)

    def task_inputs(self, student: Backbone, batch: TaskBatch) -> Any:
        """What the task loss's terms are made of, a frozen dataclass of tensors and `Texts`; None: this batch has no loss."""
        classes = class_texts(student, self.context.class_tokens, self.context.ranks)
        return TaskInputs(images=batch.images, labels=batch.labels, classes=classes)

    def task_terms(self, student: Backbone, inputs: Any) -> LossTerms:
        """The task loss: a function of the inputs and the student's weights, which asks nothing for a tensor's values."""
        ranks = self.context.ranks
        images = ranks.all_gather(student.encode_images(inputs.images), len(inputs.labels))
        logits = similarity_logits(images, inputs.classes.encoded(student, ranks), student.scale)
        return LossTerms(cross_entropy=task_cross_entropy(logits, inputs.labels, label_smoothing=self.context.label_smoothing))

    def replay_loss(self, student: Backbone, batch: ReplayBatch) -> LossTerms:
        """Loss on a batch of the replay stream; differentiated first, on its own."""
        inputs = self.replay_inputs(student, batch)
        return LossTerms() if inputs is None else self.replay_terms(student, inputs)

    def replay_inputs(self, student: Backbone, batch: ReplayBatch) -> Any:
        """As `task_inputs`, of a batch of the replay stream; what a frozen model makes of it too."""
        return None

    def replay_terms(self, student: Backbone, inputs: Any) -> LossTerms:
        """As `task_terms`."""
        return LossTerms()

    def after_replay_backward(self, student: Backbone, gradient: FlatTensors) -> None:
        """The replay loss's own gradient, of the whole batch and all trained parameters, 0 where there is none: a Fisher is read here.

        Not to be changed. `.grad` holds the task loss's by now.
        """

    @property
    def reads_replay_gradient(self) -> bool:
        """Whether `after_replay_backward` does anything: the replay loss's gradient is then kept apart from the task loss's."""
        return type(self).after_replay_backward is not Method.after_replay_backward

    def penalty(self, student: Backbone) -> Penalty | None:
        """A quadratic hold on the weights; its gradient is added in closed form."""
        return None

    def last_fisher(self) -> Weights | None:
        """The Fisher that weighted the last step's penalty, by name, if there is one and `keeps_fisher` says so."""
        return None

    def before_update(self, student: Backbone) -> None:
        """All gradients are there, of the whole batch and the penalty, alike on every rank: they may be changed or taken away."""

    def after_step(self, student: Backbone, step: int) -> None:
        """The update of `step` is done: weight averages are taken here."""

    def end_task(self, student: Backbone) -> None:
        """Put into the student what is handed on: what is saved, evaluated and where the next task starts."""

    def memory(self) -> Mapping[str, Tensor]:
        """For ReplaySource.MEMORY: indices into the training images of earlier tasks, by task name, in replay order."""
        return {}

    def scores(self, student: Backbone, classes: Classes) -> Callable[[Tensor], Tensor]:
        """Images [B, 3, H, W] to scaled similarities [B, K] to these classes; the largest is the label.

        Classes are those of one dataset, or of several one after the other; a score may not depend on what else is in the list. Where
        it does, `answers` is what to override.
        """
        return zero_shot_scores(student, classes)

    def readings(self, student: Backbone, classes: Classes) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """All that evaluation reports: the scores under "", and those of other readings of the same weights by their names."""
        return {"": self.scores(student, classes)}

    def answers(self, student: Backbone, classes: Classes) -> Mapping[str, Answer]:
        """What evaluation asks, by reading: images, then their scores among each set of candidates that is asked for.

        To be overridden where a score depends on what else is a candidate, or on whether the task is known. What is returned for a
        batch may compute when it is asked, and keep for the next candidates what they share: it is gone with the batch.
        """
        return {reading: answer_by_columns(scores) for reading, scores in self.readings(student, classes).items()}

    def state_dict(self) -> dict[str, Tensor]:
        """What `begin_task` cannot rebuild: running averages, memories. Saved with every checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave. Inside a task this comes after `begin_task`."""
        if state:
            raise ConfigError(f"The checkpoint holds state of another method ({', '.join(sorted(state))}), {self.name} keeps none.")


def require_temperature(temperature: float) -> None:
    """Raises ConfigError unless a softmax can be divided by it and keep its order."""
    if temperature <= 0:
        raise ConfigError(f"temperature must be positive, found {temperature}.")
