"""Where captions come from: class names through a template, lines of a caption file, or both by weight. Pure text, no images."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from gift_shared.caption_files import read_captions
from gift_shared.errors import ConfigError
from gift_shared.manifests import TaskManifest


class Caption(NamedTuple):
    """A caption and where it is from; `class_name` and `class_index` are None for a line of a caption file."""

    text: str
    source: str
    class_name: str | None
    class_index: int | None


def class_captions(manifest: TaskManifest) -> list[Caption]:
    """A dataset's captions in label order, through its first template. Equal class names stay: the draw is over entries."""
    pairs = zip(manifest.first_template_captions, manifest.class_names, strict=True)
    return [Caption(text, manifest.name, class_name, index) for index, (text, class_name) in enumerate(pairs)]


@dataclass(frozen=True)
class CaptionFile:
    """The non-empty lines of a caption file as a sequence of captions, kept compactly (millions of lines are fine)."""

    source: str  # "file:<stem>"
    sha256: str  # of the whole file
    texts: pa.LargeStringArray

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Caption:
        return Caption(self.texts[index].as_py(), self.source, None, None)


def read_caption_file(path: Path) -> CaptionFile:
    """A file of any kind that `gift_shared.caption_files` reads, as a component to draw from. Raises DataError."""
    read = read_captions(path)
    return CaptionFile(f"file:{path.stem}", read.sha256, read.texts)


class CaptionMixture:
    """Draws captions from one seeded stream: uniformly, with replacement, over the entries of one component.

    With class names alone every draw is exactly one `choice(pool)`, so the published lists come out (DATA_NOTES section 1).
    Only when caption files take part does a weighted draw of the component come before it, from the same stream.
    """

    def __init__(self, seed: int, class_name_weight: float, files: Sequence[tuple[CaptionFile, float]]) -> None:
        if class_name_weight < 0 or (class_name_weight == 0 and not files):
            raise ConfigError(f"The weight of class names is {class_name_weight}: nothing would be left to draw from.")
        self._stream = random.Random(seed)
        self._files = [file for file, _ in files]
        self._weights = [class_name_weight, *(weight for _, weight in files)]

    def draw(self, class_pool: Sequence[Caption]) -> Caption:
        """The next caption of the stream, class names being drawn from `class_pool`."""
        components: list[Sequence[Caption] | CaptionFile] = [class_pool, *self._files]
        if len(components) == 1:
            return self._stream.choice(class_pool)
        component = self._stream.choices(components, self._weights)[0]
        return component[self._stream.randrange(len(component))]
