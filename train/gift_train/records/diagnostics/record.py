"""Notes what a report shows of a run: predictions, the fit of synthetic images, forgotten images, movement of the weights.

Everything is computed from weights that are saved anyway, so a run that was interrupted notes the same as one that was not.
Draws no random number and touches no gradient.
"""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gift_shared.manifests import JoinedClasses
from gift_train.clip.model import Backbone, in_blocks
from gift_train.clip.zero_shot import similarity_logits
from gift_train.data.batches import BatchOrder, place_replay, stream
from gift_train.data.replay import ReplayCollate, ReplayDataset
from gift_train.data.tasks import Task
from gift_train.distributed import Ranks
from gift_train.methods.base import Method
from gift_train.methods.consolidation import Weights
from gift_train.records.diagnostics.files import ZERO_SHOT, diagnostics_file, read_diagnostics, write_diagnostics

FISHER_SAMPLE = 2**18  # entries that are sorted for the Fisher's concentration; all of them in a small model
FORGOTTEN_PER_DATASET = 8  # pictures kept for each dataset and task
PICTURE_PIXELS = 96


@dataclass(frozen=True)
class PredictionRecorder:
    """What test images are taken for, by dataset: columns of the order's joined classes; on several ranks those of its batches."""

    predicted: dict[str, list[Tensor]] = field(default_factory=dict)

    def note(self, dataset: str, columns: Tensor) -> None:
        """Add a batch, columns [B]."""
        self.predicted.setdefault(dataset, []).append(columns)

    def share(self, datasets: Iterable[str], ranks: Ranks) -> None:
        """Put together what all ranks noted of these datasets, in the order of the images."""
        for dataset in datasets:
            notes = self.predicted.get(dataset)
            own = torch.cat(notes).cpu() if notes else torch.empty(0, dtype=torch.long)
            self.predicted[dataset] = ranks.gather_object(own)


def record_predictions(run: Path, number: int, name: str, tasks: Mapping[str, Task], noted: PredictionRecorder) -> None:
    """Write the predictions after task `number` of an order whose tasks are `tasks`."""
    columns: dict[str, Any] = {"dataset": [], "index": [], "label": [], "predicted": [], "predicted_dataset": []}
    names, starts = np.asarray(list(tasks)), np.asarray(JoinedClasses(tuple(task.manifest for task in tasks.values())).starts)
    for dataset, parts in noted.predicted.items():
        labels = tasks[dataset].test.labels
        predicted = torch.cat(parts)[: len(labels)].numpy()  # of fewer batches than ranks every rank took all
        places = np.searchsorted(starts, predicted, side="right") - 1
        columns["dataset"] += [dataset] * len(labels)
        columns["index"] += range(len(labels))
        columns["label"] += labels.tolist()
        columns["predicted"] += (predicted - starts[places]).tolist()
        columns["predicted_dataset"] += names[places].tolist()
    write_diagnostics(diagnostics_file(run, "predictions", number, name), "predictions", columns)


def record_forgotten(run: Path, number: int, names: tuple[str, ...], tasks: Mapping[str, Task]) -> None:
    """Write test images that were right in the evaluation before task `number` of `names` and wrong after it, evenly spaced."""
    before, after = (_predictions(run, place, names) for place in (number - 1, number))
    if before is None or after is None:
        return
    columns: dict[str, list[Any]] = {
        "dataset": [], "index": [], "class_name": [], "predicted_class_name": [], "picture": [], "num_forgotten": [],
    }  # fmt: skip
    for dataset, now in after.items():
        forgotten = np.flatnonzero(before[dataset].are_right & ~now.are_right)
        class_names = tasks[dataset].manifest.class_names
        for index in _evenly_spaced(forgotten, FORGOTTEN_PER_DATASET):
            columns["dataset"].append(dataset)
            columns["index"].append(int(index))
            columns["class_name"].append(class_names[now.labels[index]])
            columns["predicted_class_name"].append(now.told(index, tasks))
            columns["picture"].append(_small_picture(tasks[dataset].test.source.image(int(index))))
            columns["num_forgotten"].append(len(forgotten))
    write_diagnostics(diagnostics_file(run, "forgotten", number, names[number - 1]), "forgotten", columns)


def record_replay(path: Path, images: ReplayDataset, before: Backbone, after: Backbone, batch_size: int) -> None:
    """Write how well each synthetic image fits its own caption, among the task's distinct captions, for both models."""
    captions = list(dict.fromkeys(images.captions))
    place = {caption: number for number, caption in enumerate(captions)}
    own = torch.tensor([place[caption] for caption in images.captions])
    first, second = (_log_probabilities(backbone, images, captions, batch_size) for backbone in (before, after))
    columns: dict[str, Any] = {"sample_key": images.sample_keys}
    for name, (similarities, log_probabilities) in (("before", first), ("after", second)):
        ours = similarities.gather(1, own[:, None])
        columns[f"similarity_{name}"] = ours.squeeze(1).numpy()
        columns[f"probability_{name}"] = log_probabilities.gather(1, own[:, None]).squeeze(1).exp().numpy()
        columns[f"rank_{name}"] = (1 + (similarities > ours).sum(dim=1)).int().numpy()
    columns["divergence"] = (first[1].exp() * (first[1] - second[1])).sum(dim=1).clamp(min=0).numpy()
    write_diagnostics(path, "replay", columns)


@dataclass(frozen=True)
class StepMeasures:
    """Two numbers for a logged step: how far the weights have moved in this task, and how concentrated the Fisher is."""

    method: Method
    student: Backbone
    task_start: Weights

    @classmethod
    def at_task_start(cls, method: Method, student: Backbone) -> "StepMeasures":
        """Remember the weights as they are now."""
        return cls(method, student, {name: weight.detach().clone() for name, weight in method.trainable(student).items()})

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        squares = [(weight - self.task_start[name]).square().sum() for name, weight in self.method.trainable(self.student).items()]
        found = {"distance_from_task_start": float(torch.stack(squares).sum().sqrt())}
        penalty = self.method.penalty(self.student)
        if penalty is not None and penalty.fisher is not None:
            found["fisher_half_share"] = half_share(penalty.fisher)
        return found


@torch.no_grad()
def half_share(fisher: Weights, most: int = FISHER_SAMPLE) -> float:
    """Smallest share of the weights that carries half of the Fisher's sum, fraction; 0.5 means that all count alike.

    Of more than `most` weights every k-th is looked at, with k odd so that no column of a matrix is looked at twice as often.
    """
    stride = max(1, sum(tensor.numel() for tensor in fisher.values()) // most) | 1
    values = torch.cat([tensor.flatten()[::stride] for tensor in fisher.values()]).double().sort(descending=True).values
    carried = values.cumsum(0)
    return (1 + int((carried < 0.5 * carried[-1]).sum())) / len(values)


@torch.no_grad()
def _log_probabilities(backbone: Backbone, images: ReplayDataset, captions: list[str], batch_size: int) -> tuple[Tensor, Tensor]:
    """Cosines and log probabilities [N, K] of every image against every distinct caption, on the CPU."""
    tokens = backbone.tokenize(captions)
    texts = in_blocks(lambda block: backbone.encode_texts(backbone.trim(block)), tokens)
    order = BatchOrder(num_samples=len(images), batch_size=batch_size, seed=0, name="diagnose", is_shuffled=False)
    batches = stream(images, order, ReplayCollate(backbone.tokenize), range(order.batches_per_epoch))
    features = torch.cat([backbone.encode_images(place_replay(batch, backbone).images) for batch in batches])
    logits = similarity_logits(features, texts, backbone.scale)
    return (features @ texts.T).cpu(), logits.log_softmax(dim=1).cpu()


@dataclass(frozen=True)
class _Predictions:
    """Of one dataset's test images, [N]."""

    dataset: str
    labels: np.ndarray
    predicted: np.ndarray
    predicted_datasets: np.ndarray

    @property
    def are_right(self) -> np.ndarray:
        return np.asarray((self.predicted == self.labels) & (self.predicted_datasets == self.dataset))

    def told(self, index: int, tasks: Mapping[str, Task]) -> str:
        """The class an image is taken for, with its dataset if that is another one."""
        dataset = str(self.predicted_datasets[index])
        name = tasks[dataset].manifest.class_names[self.predicted[index]]
        return name if dataset == self.dataset else f"{name} ({dataset})"


def _predictions(run: Path, number: int, names: tuple[str, ...]) -> dict[str, _Predictions] | None:
    """What was noted, by dataset; None for an evaluation that was made without diagnostics."""
    path = diagnostics_file(run, "predictions", number, names[number - 1] if number else ZERO_SHOT)
    if not path.is_file():
        return None
    table = read_diagnostics(path, "predictions")
    datasets, others = (np.asarray(table[column].to_pylist()) for column in ("dataset", "predicted_dataset"))
    labels, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
    return {
        name: _Predictions(name, *(values[datasets == name] for values in (labels, predicted, others)))
        for name in Counter(datasets.tolist())
    }


def _evenly_spaced(places: np.ndarray, count: int) -> np.ndarray:
    return places if len(places) <= count else places[[number * len(places) // count for number in range(count)]]


def _small_picture(image: Image.Image) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()
