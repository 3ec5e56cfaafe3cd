"""How many images each class name shall have, from a table that a user wrote."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from gift_generate.planning.captions import ClassEntry
from gift_generate.planning.tables import read_table, typed_column
from gift_shared.errors import ConfigError, PlanError, unknown_name

COLUMNS = {"class_name": pa.string(), "images": pa.int64(), "dataset": pa.string()}
MOST_IMAGES = 100_000  # of a class: keys have five digits for them


def read_class_counts(path: Path, entries: Sequence[ClassEntry]) -> dict[ClassEntry, int]:
    """Images by class name, for those that the table names; a name that a dataset has twice counts for both.

    Raises: PlanError for a table that cannot be understood, ConfigError for names that no dataset of the plan has, or several have.
    """
    table = read_table(path)
    for name in table.column_names:
        if name not in COLUMNS:
            raise PlanError(f"{path}: " + unknown_name("column", name, COLUMNS))
    if not {"class_name", "images"} <= set(table.column_names):
        raise PlanError(f"{path}: expected the columns class_name and images, found {', '.join(table.column_names)}.")
    columns = [typed_column(path, table, name, kind) for name, kind in COLUMNS.items() if name in table.column_names]
    values = [*columns, pa.nulls(len(table), pa.string())][:3]
    by_name: dict[str, list[ClassEntry]] = {}
    for entry in entries:
        by_name.setdefault(entry.class_name, []).append(entry)
    counts: dict[ClassEntry, int] = {}
    for row, (name, images, dataset) in enumerate(zip(*(column.to_pylist() for column in values), strict=True), start=1):
        where = f"{path}, row {row}"
        if name is None or images is None or not 0 <= images <= MOST_IMAGES:
            raise PlanError(f"{where}: expected a class name and a number of images from 0 to {MOST_IMAGES}, found {name} and {images}.")
        found = [entry for entry in by_name.get(name, ()) if dataset is None or entry.source == dataset]
        if not found:
            datasets = {entry.source for entry in entries}
            if dataset is not None and dataset not in datasets:
                raise ConfigError(f"{where}: " + unknown_name("dataset of the plan", dataset, datasets))
            raise ConfigError(f"{where}: {_unknown_class(name, [entry.class_name for entry in entries])}")
        if len({entry.source for entry in found}) > 1:
            several = " and ".join(sorted({entry.source for entry in found}))
            raise ConfigError(f"{where}: {several} both have a class {name!r}. Say which one in a column dataset.")
        if found[0] in counts:
            raise ConfigError(f"{where}: the class {name!r} stands in the table twice.")
        counts |= dict.fromkeys(found, images)
    return counts


def _unknown_class(name: str, valid: Sequence[str]) -> str:
    """The nearest of what may be thousands of names, and not all of them."""
    return unknown_name("class name of the plan", name, valid).partition(" Valid:")[0]


def file_sha256(path: Path) -> str:
    """Of the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
