"""A few training images a class: which ones, and on record."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gift_shared.atomic import write_json
from gift_shared.errors import DataError
from gift_shared.keys import hashed_seed
from gift_shared.manifests import TaskManifest
from gift_train.data.datasets.images import ImageSource, Selected


def few_shot(manifest: TaskManifest, train: ImageSource, shots: int, seed: int) -> Selected:
    """`shots` training images of every class, in the order in which they stand in `train`.

    Of a class's images, in their order, those come first that `torch.randperm` names, seeded by run seed, dataset and label: with one
    seed, fewer shots are among more, and neither other classes nor other datasets change which they are. A dataset that is cut into
    steps keeps the images it has whole.
    Raises: DataError for a class that has fewer images, naming it.
    """
    chosen = [_of_class(manifest, np.flatnonzero(train.labels == label), label, shots, seed) for label in range(len(manifest.class_names))]
    return Selected(train, np.sort(np.concatenate(chosen)))


def _of_class(manifest: TaskManifest, own: NDArray[np.int64], label: int, shots: int, seed: int) -> NDArray[np.int64]:
    if len(own) < shots:
        raise DataError(
            f"{manifest.name}: class {manifest.class_names[label]!r} has {len(own)} training images, the order asks for shots = {shots}. "
            "Take an order of fewer shots, or leave the dataset out."
        )
    generator = torch.Generator().manual_seed(hashed_seed(seed, f"few-shot/{manifest.dataset.name}/{manifest.dataset_labels[label]}"))
    first: NDArray[np.int64] = own[torch.randperm(len(own), generator=generator).numpy()[:shots]]
    return first


def write_few_shot(path: Path, manifest: TaskManifest, train: Selected) -> None:
    """Which images they are: place in the training split, class, and where the image lies."""
    images = [
        {"index": int(index), "class_name": manifest.class_names[train.labels[place]], "image": train.where(place)}
        for place, index in enumerate(train.indices)
    ]
    write_json(path, {"dataset": manifest.name, "images": images})
