"""A run's model in a notebook: pictures and texts in, probabilities and features out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gift_shared.decoding import as_rgb
from gift_shared.errors import ConfigError
from gift_shared.frames import matrix_frame
from gift_shared.manifests import TaskManifest
from gift_train.clip.candidates import all_candidates
from gift_train.clip.model import Backbone, in_blocks
from gift_train.data.transforms import image_transforms
from gift_train.methods.base import Method
from gift_train.records.restore import Restored

if TYPE_CHECKING:
    from gift_shared.frames import DataFrame

TEMPLATES = ("a photo of a {}.",)
BATCH = 64  # images of a forward pass


@dataclass(frozen=True)
class Classification:
    """What a model makes of N images among K classes."""

    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]  # [N, K], rows sum to 1

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.class_names[place] for place in self.probabilities.argmax(axis=1)]

    def to_frame(self) -> DataFrame:
        """Probabilities with a column for each class. Raises ConfigError without pandas."""
        return matrix_frame(self.probabilities, list(map(str, range(len(self.probabilities)))), self.class_names, "image", "class")


class Model:
    """A CLIP and the method that knows how to read its weights.

    `backbone` is the network with its two towers, `method` what trained it, `name` says which it is. Nothing here changes weights.
    """

    def __init__(self, restored: Restored, name: str) -> None:
        self.backbone: Backbone = restored.student
        self.method: Method = restored.method
        self.name = name
        self._transform = image_transforms(self.backbone.image_settings[0], self.backbone.resize_settings).evaluation

    def __repr__(self) -> str:
        return f"<{self.name}, on {self.backbone.device}>"

    def classify(
        self, images: Sequence[Image.Image], class_names: Sequence[str], templates: Sequence[str] = TEMPLATES, batch_size: int = BATCH
    ) -> Classification:
        """How probable each class is for each image, with the classifier that evaluation uses: class names in all templates.

        The probabilities are softmax of the scaled similarities, over the classes given. MoE-Adapter may route a batch as one, as its
        recipe says; then an image's numbers depend on those it comes with, and batch_size=1 routes each alone.

        Args:
            images: PIL images of any mode and size. class_names: `"red fox"` ..., all different. templates: each with `{}` for the name.
        Raises: ConfigError for class names or templates that are not such.
        """
        manifest = _manifest(class_names, templates)
        answer, candidates = self.method.answers(self.backbone, manifest)[""], all_candidates(manifest)
        scores = self._without_gradient(lambda pixels: answer(pixels)(candidates), images, batch_size)
        found = torch.empty(0, len(manifest.class_names)) if scores is None else scores.softmax(dim=1)
        return Classification(manifest.class_names, found.numpy())

    def image_features(self, images: Sequence[Image.Image], batch_size: int = BATCH) -> NDArray[np.float32]:
        """[N, D] float32, L2-normalised; of MoE-Adapter's network with no adapter chosen, of ConDU's initial model."""
        features = self._without_gradient(self.backbone.encode_images, images, batch_size)
        return np.empty((0, 0), np.float32) if features is None else features.numpy()

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[K, D] float32, L2-normalised. Texts longer than the model's context are cut."""
        if not _list_of_texts(texts):
            raise ConfigError(f"texts must be a list of texts, at least one; found {texts!r}.")
        backbone = self.backbone
        with torch.no_grad():
            features = in_blocks(lambda block: backbone.encode_texts(backbone.trim(block)), backbone.tokenize(texts))
        return features.cpu().numpy()

    @torch.no_grad()
    def _without_gradient(self, function: Callable[[Tensor], Tensor], images: Sequence[Image.Image], batch_size: int) -> Tensor | None:
        """function(pixels [B, 3, S, S]) for all images, on the CPU; None of no images."""
        pixels = [self._transform(as_rgb(image).image) for image in images]
        batches = [torch.stack(pixels[start : start + batch_size]) for start in range(0, len(pixels), batch_size)]
        found = [function(self.backbone.place_images(batch)).float().cpu() for batch in batches]
        return torch.cat(found) if found else None


def _manifest(class_names: Sequence[str], templates: Sequence[str]) -> TaskManifest:
    if not _list_of_texts(class_names) or len(set(class_names)) < len(class_names):
        raise ConfigError(f"class_names must be a list of different names, at least one; found {class_names!r}.")
    if not _list_of_texts(templates) or not all("{}" in template for template in templates):
        raise ConfigError(f"templates must be a list of texts with {{}} in place of the class name; found {templates!r}.")
    return TaskManifest(
        name="notebook",
        display_name="Notebook",
        class_names=tuple(class_names),
        templates=tuple(templates),
        data=None,
        counts={},
        about="",
    )


def _list_of_texts(given: Sequence[str]) -> bool:
    return not isinstance(given, str) and len(given) > 0 and all(isinstance(text, str) for text in given)
