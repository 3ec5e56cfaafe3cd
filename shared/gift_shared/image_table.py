"""Rows of an output folder's index with their images, as a person in a notebook wants them. No step of the pipeline reads by this."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from gift_shared.decoding import decode_rgb
from gift_shared.errors import ConfigError, ShardError, unknown_name
from gift_shared.frames import table_frame
from gift_shared.schema import SampleStatus
from gift_shared.shards import read_image_bytes, tar_name
from gift_shared.storage import Folder

if TYPE_CHECKING:
    from gift_shared.frames import DataFrame


class ImageTable:
    """Rows of an index (docs/formats.md), in order, and the images that they stand for.

    `len(images)` counts rows. Iterating gives (image, row) of every row that has an image: a PIL image in RGB, and the row as a dict.
    Images are read from the shards when they are asked for, and checked against the index.
    """

    def __init__(self, table: pa.Table, folder: Folder) -> None:
        self.table = table  # INDEX_SCHEMA
        self.folder = folder

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {self.folder}>"

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        for row in self.table.to_pylist():
            if row["status"] == SampleStatus.OK:
                yield self._image(row), row

    @cached_property
    def rows(self) -> "DataFrame":
        """All rows as a DataFrame, one column for each of the index. Raises ConfigError without pandas."""
        return table_frame(self.table)

    @property
    def keys(self) -> list[str]:
        """The sample keys of all rows."""
        keys: list[str] = self.table["sample_key"].to_pylist()
        return keys

    def row(self, sample_key: str) -> dict[str, Any]:
        """One row by its sample key. Raises ConfigError if there is none."""
        place = self._places.get(sample_key)
        if place is None:
            raise ConfigError(
                f"No sample {sample_key!r} among {self!r}; their keys are in .keys, such as {next(iter(self._places), None)!r}."
            )
        (row,) = self.table.slice(place, 1).to_pylist()
        return dict(row)

    def image(self, sample_key: str) -> Image.Image:
        """The image of a sample, in RGB.

        Raises: ConfigError for a key that is not there, ShardError if the sample has no image or the shards have not the one it had.
        """
        row = self.row(sample_key)
        if row["status"] != SampleStatus.OK:
            raise ShardError(f"{sample_key} has no image: its status is {row['status']!r} ({row['message'] or 'no more is known'}).")
        return self._image(row)

    def filter(self, caption: str | None = None, **columns: Any) -> "ImageTable":
        """Those rows whose caption contains a text, upper and lower case being one, and whose columns have the values given.

        `images.filter("fox", task="mini_flags", status="ok")`. Raises ConfigError for a column that is not there.
        """
        keep = pa.array([True] * len(self))
        if caption is not None:
            keep = pc.and_(keep, pc.match_substring(self.table["caption"], caption, ignore_case=True))
        for name, value in columns.items():
            if name not in self.table.column_names:
                raise ConfigError(unknown_name("column", name, self.table.column_names))
            keep = pc.and_(keep, pc.equal(self.table[name], value))
        return ImageTable(self.table.filter(keep), self.folder)

    def select(self, sample_keys: Iterable[str]) -> "ImageTable":
        """The rows of these samples, in this order: `images.select(images.rows.query("attempts > 1").sample_key)`. Raises ConfigError."""
        chosen = list(sample_keys)
        for key in chosen:
            self.row(key)
        return ImageTable(self.table.take(pa.array([self._places[key] for key in chosen], pa.int64())), self.folder)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.keys)}

    def _image(self, row: dict[str, Any]) -> Image.Image:
        if isinstance(self.folder, Path) and not self.folder.is_dir():
            raise ShardError(f"The shards of these rows are not here: no folder {self.folder}. Say where they are (shards=...).")
        content = read_image_bytes(self.folder, row["shard"], row["byte_offset"], row["byte_size"], row["sha256"])
        return decode_rgb(content, f"{tar_name(self.folder, row['shard'])} ({row['sample_key']})", ShardError)
