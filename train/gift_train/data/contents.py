"""What a dataset's images are like, beyond their number: values that hardly can be meant, conversions, and images of both splits."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from gift_datasets.images import ImageSource
from gift_datasets.parts import passed_over
from gift_shared.decoding import TURNED, is_turned
from gift_shared.progress import with_progress

CONSTANT = "of one colour"
MOST_NAMES_TOLD = 3
_Image = tuple[ImageSource, int]


def notes(sources: Mapping[str, ImageSource]) -> tuple[str, ...]:
    """One sentence for each thing worth a look. Raises DataError if an image of the sample does not decode."""
    others = passed_over(sources.values())
    told = [f"{others}."] if others else []
    return (*told, *_values(list(sources.values())), *_shared(sources))


def sample(source: ImageSource) -> list[int]:
    """Two images of each class, its first and its middle one."""
    order = np.argsort(source.labels, kind="stable")
    starts = np.flatnonzero(np.diff(source.labels[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    return sorted({int(order[place]) for start, end in zip(starts, ends, strict=True) for place in (start, (start + end) // 2)})


def _values(sources: Sequence[ImageSource]) -> list[str]:
    """Images of the samples that are all one colour, and what decoding did to others."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    images = [(source, index) for source in sources for index in sample(source)]
    for source, index in images:
        decoded = source.decoded(index)
        found = list(decoded.done)
        if all(len(set(extrema)) == 1 for extrema in np.reshape(decoded.image.getextrema(), (-1, 2)).tolist()):
            found.append(CONSTANT)
        content = source.encoded(index)
        if content is not None and is_turned(content):
            found.append(TURNED)
        for kind in found:
            counts[kind] += 1
            first.setdefault(kind, source.where(index))
    return [f"{count} of {len(images)} sampled images: {kind}, first {first[kind]}." for kind, count in counts.items()]


def _shared(sources: Mapping[str, ImageSource]) -> list[str]:
    """Test images that are training images too, by their bytes; only files of equal size are read."""
    if not {"train", "test"} <= sources.keys():
        return []
    of_size: dict[str, dict[int, list[_Image]]] = {}
    for part in ("train", "test"):
        of_size[part] = defaultdict(list)
        for index in range(len(sources[part])):
            listing = sources[part].listing(index)
            if listing is not None:
                of_size[part][listing[1]].append((sources[part], index))
    sizes = sorted(of_size["train"].keys() & of_size["test"].keys())
    both = []
    for size in with_progress(sizes, "train against test", len(sizes), "size", stays=False):
        known = {_digest(image): image for image in reversed(of_size["train"][size])}
        both += [(image, known[digest]) for image in of_size["test"][size] if (digest := _digest(image)) in known]
    if not both:
        return []
    names = [f"{_where(test)} = {_where(train)}" for test, train in both[:MOST_NAMES_TOLD]] + ["..."] * (len(both) > MOST_NAMES_TOLD)
    return [f"{len(both)} of {len(sources['test'])} test images are training images too: {'; '.join(names)}."]


def _digest(image: _Image) -> bytes:
    source, index = image
    return hashlib.sha256(source.encoded(index) or b"").digest()


def _where(image: _Image) -> str:
    source, index = image
    return source.where(index)
