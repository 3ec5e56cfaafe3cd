"""The images and captions a task's LoRA learns from: the task's training images, and the caption of each image's class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gift_datasets.few_shot import FewShot, few_shot
from gift_datasets.images import ImageSource, digest_of
from gift_datasets.parts import of_task, open_parts, tell_passed_over
from gift_generate.adaptation.options import AdaptOptions
from gift_generate.workers.rank import Worker
from gift_shared.errors import ManifestError, unknown_name
from gift_shared.manifests import Manifests, TaskManifest

PROBES = 16  # images of a task that are decoded before any work is spent


@dataclass(frozen=True)
class TaskToLearn:
    """One task: its training images, and the caption of each of its labels, in the template that images are planned with."""

    name: str
    images: ImageSource
    captions: tuple[str, ...]

    def caption(self, index: int) -> str:
        """Of the index-th image."""
        return self.captions[int(self.images.labels[index])]

    def pixels(self, index: int, height: int, width: int) -> Tensor:
        """The index-th image [3, H, W], -1 to 1: scaled until it covers the size, and the rest cut off evenly. Raises DataError."""
        fitted = ImageOps.fit(self.images.image(index), (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1

    def digest(self) -> str:
        """Of the images' names, sizes and labels and of the captions; the same on every machine."""
        return digest_of(self.images.listing_digest().encode(), *(caption.encode() for caption in self.captions))


def open_tasks(options: AdaptOptions, manifests: Manifests, worker: Worker) -> list[TaskToLearn]:
    """A worker's share of the tasks that were asked for; images are listed, and a few decoded.

    Raises: ManifestError for a name that is none, DataError for images that are missing, incomplete or broken.
    """
    order = manifests.order(options.order) if options.order is not None else None
    known = manifests.tasks_of(order) if order is not None else {}
    names = list(dict.fromkeys(options.task or known))
    for name in names:
        if order is not None and name not in known:
            raise ManifestError("--task: " + unknown_name(f"task of {order.name}", name, known))
    tasks = []
    for name in worker.share(names):
        manifest = known[name] if order is not None else manifests.task(name)
        shots = None
        if order is not None and order.shots is not None:
            shots = FewShot(order.shots, options.seed, manifest.dataset.name in order.fewer_shots)
        tasks.append(_open_task(manifest, options.data_root, shots))
    return tasks


def _open_task(manifest: TaskManifest, data_root: Path, shots: FewShot | None) -> TaskToLearn:
    whole = open_parts(manifest.dataset, data_root, ["train"])["train"]
    tell_passed_over(manifest.dataset, [whole])
    images = of_task(manifest, "train", whole)
    if shots is not None:
        images = few_shot(manifest, images, shots)
    for index in np.linspace(0, len(images) - 1, min(PROBES, len(images)), dtype=np.int64):
        images.image(int(index))
    return TaskToLearn(manifest.name, images, manifest.first_template_captions)
