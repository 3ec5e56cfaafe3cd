"""Where captions come from: class names through templates, captions of files, or both by weight. Pure text, no images."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from gift_generate.planning.plan_request import Sampling, Templates
from gift_shared.caption_columns import ColumnWish
from gift_shared.caption_files import ANY_COLUMN, read_captions, source_stem
from gift_shared.errors import ConfigError, DataError
from gift_shared.keys import hashed_seed
from gift_shared.manifests import TaskManifest

REPEATED = "repeated"  # beside the reasons of gift_shared.caption_files


class Caption(NamedTuple):
    """A caption and where it is from; `class_name` and `class_index` are None for a caption of a file."""

    text: str
    source: str
    class_name: str | None
    class_index: int | None


class ClassEntry(NamedTuple):
    """A class name as it stands in a pool of captions, with the templates it may be put into."""

    source: str
    class_name: str
    class_index: int
    templates: tuple[str, ...]

    def caption(self, template: int = 0) -> Caption:
        """The class name in one of its templates; numbers beyond the last one begin anew."""
        text = self.templates[template % len(self.templates)].replace("{}", self.class_name)
        return Caption(text, self.source, self.class_name, self.class_index)


def class_entries(manifest: TaskManifest, templates: str = Templates.FIRST) -> list[ClassEntry]:
    """A task's class names in label order, as classes of the dataset it is made of. Equal class names stay: the draw is over entries."""
    used = manifest.templates if templates == Templates.ALL else manifest.templates[:1]
    names = zip(manifest.class_names, manifest.dataset_labels, strict=True)
    return [ClassEntry(manifest.dataset.name, class_name, label, used) for class_name, label in names]


@dataclass(frozen=True)
class CaptionFile:
    """The captions of a source as a sequence, kept compactly (millions are fine), and how many were left out, by reason."""

    source: str  # "file:<stem>"
    sha256: str  # of the whole file
    texts: pa.LargeStringArray
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Caption:
        return Caption(self.texts[index].as_py(), self.source, None, None)


def read_caption_file(path: Path, wish: ColumnWish = ANY_COLUMN) -> CaptionFile:
    """A file, folder or pattern that `gift_shared.caption_files` reads, as a component to draw from. Raises DataError."""
    read = read_captions(path, wish)
    return CaptionFile(f"file:{source_stem(path)}", read.sha256, read.texts, read.skipped)


def without_repeats(files: Sequence[CaptionFile]) -> list[CaptionFile]:
    """Every caption once, where it stands first, over all files. Raises DataError if nothing of a file is left."""
    seen, kept = pa.array([], pa.large_string()), []
    for file in files:
        texts = file.texts.unique()
        texts = texts.filter(pc.invert(pc.is_in(texts, value_set=seen)))
        if not len(texts):
            raise DataError(f"{file.source}: with --dedup no caption is left that an earlier --caption-file does not hold. Leave it out.")
        seen = pa.concat_arrays([seen, texts])
        num_repeated = len(file) - len(texts)
        kept.append(replace(file, texts=texts, skipped=file.skipped + Counter({REPEATED: num_repeated})))
    return kept


def line_numbers(sampling: str, stream: random.Random, num_lines: int, num_images: int | None = None) -> Iterator[int]:
    """Which captions of a file are painted, for so many images or without end; all are used before any comes again but in `replacement`."""
    left = num_images
    while left is None or left > 0:
        take = num_lines if left is None else min(left, num_lines)
        if sampling == Sampling.IN_ORDER:
            yield from range(take)
        elif sampling == Sampling.SHUFFLED:
            yield from stream.sample(range(num_lines), take)
        else:
            yield from (stream.randrange(num_lines) for _ in range(take))
        left = None if left is None else left - take


class CaptionMixture:
    """Draws captions from one seeded stream: uniformly, with replacement, over the entries of one component.

    With class names in their first template alone every draw is exactly one `choice(pool)`, so the published lists come out
    (DATA_NOTES section 1). With all templates, a draw of one of the name's own follows it, so each class name keeps its share. Only when
    caption files take part does a weighted draw of the component come before it, from the same stream. Where their captions are not
    drawn with replacement, each file has an order of its own, which the draws of others do not move.
    """

    def __init__(
        self,
        seed: int,
        class_name_weight: float,
        files: Sequence[tuple[CaptionFile, float]],
        sampling: str = Sampling.REPLACEMENT,
    ) -> None:
        if class_name_weight < 0 or (class_name_weight == 0 and not files):
            raise ConfigError(f"The weight of class names is {class_name_weight}: nothing would be left to draw from.")
        self._stream = random.Random(seed)
        self._weights = [class_name_weight, *(weight for _, weight in files)]
        self._files = [file for file, _ in files]
        self._lines = [
            line_numbers(
                sampling,
                self._stream if sampling == Sampling.REPLACEMENT else random.Random(hashed_seed(seed, file.source)),
                len(file),
            )
            for file in self._files
        ]

    def draw(self, class_pool: Sequence[ClassEntry]) -> Caption:
        """The next caption of the stream, class names being drawn from `class_pool`."""
        component = self._stream.choices(range(len(self._weights)), self._weights)[0] if self._files else 0
        if component:
            return self._files[component - 1][next(self._lines[component - 1])]
        entry = self._stream.choice(class_pool)
        return entry.caption(self._stream.randrange(len(entry.templates)) if len(entry.templates) > 1 else 0)
