"""Write the mini world's six tasks as image folders: <out>/<dataset>/<train or test>/<class slug>/<number>.png.

Usage: python -m gift_mini.tasks --out DIR [--datasets mini_shapes mini_digits ...]

Every picture depends on its own name only, so any subset gives the same pixels. A dataset is drawn in a temporary folder and
renamed when whole; one that is there already is left alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from gift_mini.drawing import task_picture, tinted_digit
from gift_mini.stamps import CLASSES
from gift_shared.keys import slug

DATASETS = tuple(name for name in CLASSES if name != "mini_base")
TRAIN_PICTURES, TEST_PICTURES = 900, 300  # aimed at; classes are kept equal, so a task may hold a few more or less
DIGITS_TEST_SHARE = 0.2


def pictures(dataset: str) -> Iterator[tuple[str, str, int, Image.Image]]:
    """Every picture of a task with its split, class name and number within the two."""
    if dataset == "mini_digits":
        yield from _digits()
        return
    for class_name in CLASSES[dataset]:
        for split, total in (("train", TRAIN_PICTURES), ("test", TEST_PICTURES)):
            for number in range(round(total / len(CLASSES[dataset]))):
                rng = _rng(dataset, split, class_name, number)
                yield split, class_name, number, Image.fromarray(task_picture(rng, dataset, class_name))


def _digits() -> Iterator[tuple[str, str, int, Image.Image]]:
    """scikit-learn's 1,797 handwritten digits, each used once; a fixed fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label, class_name in enumerate(CLASSES["mini_digits"]):
        members = _rng("mini_digits", "split", class_name, 0).permutation(np.flatnonzero(digits.target == label))
        cut = round(len(members) * DIGITS_TEST_SHARE)
        for split, chosen in (("train", members[cut:]), ("test", members[:cut])):
            for number, member in enumerate(chosen):
                rng = _rng("mini_digits", split, class_name, number)
                yield split, class_name, number, Image.fromarray(tinted_digit(rng, digits.images[member]))


def _rng(*name: str | int) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(map(str, name)).encode()))


def export_tasks(out: Path, datasets: Iterable[str] = DATASETS) -> None:
    """Draw the given tasks into `out`. Raises ValueError for an unknown name."""
    for dataset in datasets:
        if dataset not in DATASETS:
            raise ValueError(f"unknown mini dataset {dataset!r}; there are {', '.join(DATASETS)}")
        home = Path(out) / dataset
        if home.exists():
            continue
        draft = home.with_name(f".{dataset}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        for split, class_name, number, picture in pictures(dataset):
            folder = draft / split / slug(class_name)
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{number:04d}.png", compress_level=1)
        draft.rename(home)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="data root; one folder per dataset is made in it")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    chosen = parser.parse_args(arguments)
    export_tasks(chosen.out, chosen.datasets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
