"""A few training images a class: which ones, and on record."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gift_datasets.images import ImageSource, Selected
from gift_shared.atomic import write_json
from gift_shared.errors import DataError
from gift_shared.keys import hashed_seed
from gift_shared.manifests import TaskManifest


@dataclass(frozen=True)
class FewShot:
    """So many training images of each class, drawn by `seed`. may_lack: a class that has fewer gives all of them."""

    shots: int
    seed: int
    may_lack: bool = False


def few_shot(manifest: TaskManifest, train: ImageSource, rule: FewShot) -> Selected:
    """`rule.shots` training images of every class, in the order in which they stand in `train`.

    Of a class's images, in their order, those come first that `torch.randperm` names, seeded by run seed, dataset and label: with one
    seed, fewer shots are among more, and neither other classes nor other datasets change which they are. A dataset that is cut into
    steps keeps the images it has whole.
    Raises: DataError for a class that has fewer images and may not, naming it.
    """
    chosen = [_of_class(manifest, np.flatnonzero(train.labels == label), label, rule) for label in range(len(manifest.class_names))]
    return Selected(train, np.sort(np.concatenate(chosen)))


def _of_class(manifest: TaskManifest, own: NDArray[np.int64], label: int, rule: FewShot) -> NDArray[np.int64]:
    if len(own) < rule.shots and not rule.may_lack:
        name = manifest.class_names[label]
        raise DataError(
            f"{manifest.name}: class {name!r} has {len(own)} training images, the order asks for shots = {rule.shots}. "
            "Take an order of fewer shots, leave the dataset out, or name it in the order's fewer_shots to take all that such a class has."
        )
    place = f"{manifest.dataset.name}/{manifest.dataset_labels[label]}"
    generator = torch.Generator().manual_seed(hashed_seed(rule.seed, f"few-shot/{place}"))
    first: NDArray[np.int64] = own[torch.randperm(len(own), generator=generator).numpy()[: rule.shots]]
    return first


def write_few_shot(path: Path, manifest: TaskManifest, train: Selected) -> None:
    """Which images they are: place in the training split, class, and where the image lies."""
    images = [
        {"index": int(index), "class_name": manifest.class_names[train.labels[place]], "image": train.where(place)}
        for place, index in enumerate(train.indices)
    ]
    write_json(path, {"dataset": manifest.name, "images": images})
