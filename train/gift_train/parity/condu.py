"""Replay ConDU's golden numbers: three tasks made of a fixture's inputs, through the method object and `loop.train_steps`.

What is kept of them is compared, and what is answered: by one expert where the task is known, by several and the initial model where it
is not.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gift_shared.errors import DataError
from gift_shared.manifests import TaskManifest
from gift_train.clip.candidates import Candidates, all_candidates
from gift_train.clip.load import backbone_from_tensors
from gift_train.clip.model import Backbone
from gift_train.data.batches import TaskBatch, place_task
from gift_train.methods.base import TaskContext
from gift_train.methods.condu.merging import unpacked
from gift_train.methods.condu.method import Condu
from gift_train.parity.bounds import ON_CPU, Bounds, percentile_99
from gift_train.parity.fixture import Fixture
from gift_train.training.loop import TermRecorder, Training, build_optimizer, train_steps

TEMPLATES = ("{}", "{} again")  # the second of a class is read as the next class's first
VOTED_ON, VOTES = "captions", (1, 2)  # the task whose images were asked about as if unknown, and of how many experts
PUBLISHED_SCALE = 100.0  # of similarities, whatever the model's own
NUM_TESTED = 2  # batches of a task whose images the experts answered for
# A gradient that is 0 in theory is rounding noise, of which AdamW makes steps. A bit is a step's sign, and where the steps of tasks nearly
# cancel, that of their mean is rounding's too. A wrong mask, factor or expert moves scores by 1 and more.
MASKS_APART = 2e-3  # share of bits
RESCALERS_APART = 1e-4
SCORES_APART = 2e-2  # of similarities times 100


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The largest ones; of `delta` the 99th percentile, `masks` is the share of bits that differ."""

    loss: float
    delta: float
    rescalers: float
    prototypes: float
    masks: float
    scores: float

    def agree(self, bounds: Bounds) -> bool:
        """Whether all are rounding; on an accelerator there is more of it, for ours as for losses."""
        more = bounds.loss / ON_CPU.loss
        limits = {"loss": bounds.loss, "delta": bounds.weight, "prototypes": bounds.feature}
        limits |= {"rescalers": more * RESCALERS_APART, "masks": more * MASKS_APART, "scores": more * SCORES_APART}
        return all(difference <= limits[name] for name, difference in dataclasses.asdict(self).items())

    def told(self) -> str:
        """Those that a report has no column for."""
        kept = f"lambda {self.rescalers:.1e}, prototypes {self.prototypes:.1e}, {self.masks:.3%} of the masks"
        return f"{kept}, scores {self.scores:.1e}"


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A task of the fixture: images [steps, B, 3, H, W], labels [steps, B], the tokens [K, L] of its classes."""

    name: str
    images: Tensor
    labels: Tensor
    tokens: Tensor

    @property
    def classes(self) -> TaskManifest:
        names = tuple(f"{self.name} {number}" for number in range(len(self.tokens)))
        return TaskManifest(name=self.name, display_name=self.name, class_names=names, templates=TEMPLATES, data=None, counts={}, about="")

    def batches(self, student: Backbone) -> Iterator[TaskBatch]:
        for images, labels in zip(self.images, self.labels, strict=True):
            yield place_task(TaskBatch(images=images, labels=labels), student)


class ConduReplay:
    """Three tasks of a fixture's inputs, trained on `device`: pictures, synthetic images with captions as classes, and pictures mirrored.

    The labels of the last are read as classes in reverse.
    """

    def __init__(self, fixture: Fixture, device: torch.device) -> None:
        self.fixture = fixture
        self.device = device
        images, labels, tokens = (fixture.tensor(name) for name in ("task_images", "task_labels", "class_tokens"))
        painted, captions, caption_tokens = (fixture.tensor(name) for name in ("synthetic_images", "synthetic_captions", "caption_tokens"))
        self.tasks = (
            _Task(name="pictures", images=images, labels=labels, tokens=tokens),
            _Task(name=VOTED_ON, images=painted, labels=captions, tokens=caption_tokens),
            _Task(name="mirrored", images=images.flip(-1), labels=labels, tokens=tokens.flip(0)),
        )
        self.student = self._student()
        self.method = Condu(Condu.Config(num_nearest=VOTES[0]))

    def differences(self) -> Differences:
        """Train all three, then how far everything is from the golden numbers."""
        losses = torch.tensor([loss for index in range(len(self.tasks)) for loss in self._train(index)])
        golden = torch.tensor([float(row["loss"]) for row in self.fixture.golden["condu"]["losses"]])
        unified, number = self.method.unified, len(self.tasks)
        assert unified is not None
        masks = [
            self._probe({name: unpacked(bits[place], unified.delta[name].numel()) for name, bits in unified.masks.items()})
            for place in range(number)
        ]
        return Differences(
            loss=_apart(losses, golden),
            delta=percentile_99((self._probe(unified.delta) - self.fixture.tensor("final_probe/condu")).abs()),
            rescalers=_apart(unified.rescalers, self.fixture.tensor("rescalers")),
            prototypes=max(_apart(one, self.fixture.tensor(f"prototypes/{name}")) for name, one in self.method.prototypes.items()),
            masks=float((torch.stack(masks) != self.fixture.tensor("mask_probe").bool()).float().mean()),
            scores=max(_apart(scores, self.fixture.tensor(f"scores/{name}")) for name, scores in self._scores().items()),
        )

    def _train(self, index: int) -> list[float]:
        """Every step's loss; the task's end is left behind in the method."""
        task, student, method = self.tasks[index], self.student, self.method
        context = TaskContext(
            task_name=task.name,
            task_index=index,
            num_steps=len(task.images),
            label_smoothing=self.fixture.label_smoothing,
            class_tokens=student.trim(task.tokens),
            reference_tokens=None,
            initial_weights=self.fixture.weights("initial"),
            replay_pass=None,
            task_images=lambda _: task.batches(student),
            classes=task.classes,
        )
        method.begin_task(context, student)
        parameters = method.trainable(student)
        optimizer = build_optimizer(parameters, self.fixture.optimizer)
        training = Training(method=method, student=student, parameters=parameters, optimizer=optimizer, schedule=self.fixture.schedule)
        recorder = TermRecorder(task.name)
        for step, terms in train_steps(training, ((batch, None) for batch in task.batches(student))):
            recorder.add(step, terms)
        method.end_task(student)
        return [sum(values.values()) for _, values in recorder.flush()]

    def _scores(self) -> dict[str, Tensor]:
        """By what the fixture calls them, [images, K] on the CPU."""
        found = {f"known/{task.name}": self._answers(task, VOTES[0], all_candidates(task.classes)) for task in self.tasks}
        voted_on = next(task for task in self.tasks if task.name == VOTED_ON)
        unknown = dataclasses.replace(all_candidates(voted_on.classes), datasets=("unknown",))
        return found | {f"nearest_{number}": self._answers(voted_on, number, unknown) for number in VOTES}

    def _answers(self, task: _Task, num_nearest: int, candidates: Candidates) -> Tensor:
        method = Condu(Condu.Config(num_nearest=num_nearest))
        method.load_state_dict(self.method.state_dict())
        images = self.student.place_images(task.images[:NUM_TESTED].flatten(0, 1))
        scores = method.answers(self.student, task.classes)[""](images)(candidates)
        return (PUBLISHED_SCALE * scores / self.student.scale).cpu()

    def _probe(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].flatten() for name in sorted(tensors)])[:: self.fixture.stride]

    def _student(self) -> Backbone:
        student = backbone_from_tensors(self.fixture.weights("initial"))
        student.network.to(self.device)
        student.tokenizer = self._tokenize
        return student

    def _tokenize(self, texts: Sequence[str], context_length: int) -> Tensor:
        """The fixture's tokens of `<task> <class>` and of `<task> <class> again`."""
        tokens = {task.name: task.tokens for task in self.tasks}
        rows = []
        for text in texts:
            name, number, *again = text.split()
            rows.append(tokens[name][(int(number) + len(again)) % len(tokens[name])])
        return torch.stack(rows)


def _apart(ours: Tensor, golden: Tensor) -> float:
    if ours.shape != golden.shape:
        raise DataError(f"a golden number of ConDU is {list(golden.shape)}, ours {list(ours.shape)}.")
    return float((ours.cpu() - golden).abs().max())
