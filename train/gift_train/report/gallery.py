"""Pictures of a run: the synthetic images its tasks were held to, and the test images they made it forget.

Synthetic images are read back from the shards through the run's own selection; what they did to the model is in RUN/diagnostics.
"""

import base64
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from gift_shared.decoding import decode_rgb
from gift_shared.errors import GiftError, ShardError
from gift_shared.parquet_files import read_index
from gift_shared.shards import read_image_bytes, tar_name
from gift_shared.storage import Folder, index_file, open_folder
from gift_train.records.diagnostics.files import diagnostics_file, read_diagnostics
from gift_train.report.runs import Run

THUMBNAIL_PIXELS = 96

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyntheticImage:
    """One synthetic image as a data URI, what it was asked to show, and how the model saw it before and after the task.

    fit: a row of the REPLAY diagnostics, None for a run without. tags: why it is shown.
    """

    task: str
    caption: str
    source: str
    class_name: str
    key: str
    uri: str
    fit: Mapping[str, Any] | None
    tags: tuple[str, ...]

    @property
    def divergence(self) -> float:
        """How far the model's view of it moved in the task, nats; 0 where nothing was noted."""
        return 0.0 if self.fit is None else float(self.fit["divergence"])

    @property
    def gain(self) -> float:
        """Change of the probability of its own caption, fraction."""
        return 0.0 if self.fit is None else float(self.fit["probability_after"] - self.fit["probability_before"])


@dataclass(frozen=True)
class ForgottenImage:
    """A test image that was right before a task and wrong after it, beside synthetic images of its class in that task."""

    task: str
    dataset: str
    class_name: str
    predicted_class_name: str
    num_forgotten: int
    uri: str
    synthetic: Sequence[tuple[str, str]] = field(default=())  # (data URI, caption)


class RunPictures:
    """The pictures of one run, as far as its shards are still where the run found them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        shards = (run.record.get("shards") or {}).get("path")
        self.shards = None if shards is None else _folder_with_index(shards)

    def synthetic(self, per_task: int) -> list[SyntheticImage]:
        """Up to `per_task` images of every task: extremes of what diagnostics say of them, and evenly spaced ones."""
        return [image for number, task in enumerate(self.run.datasets, start=1) for image in self._synthetic(number, task, per_task)]

    def forgotten(self, per_task: int) -> list[ForgottenImage]:
        """Up to `per_task` forgotten test images of every task, evenly spaced among those the run kept."""
        return [image for number, task in enumerate(self.run.datasets, start=1) for image in self._forgotten(number, task, per_task)]

    def _synthetic(self, number: int, task: str, count: int) -> list[SyntheticImage]:
        rows = self._replay_rows(task)
        if self.shards is None:
            return []
        path = diagnostics_file(self.run.path, "replay", number, task)
        fits = {fit["sample_key"]: fit for fit in read_diagnostics(path, "replay").to_pylist()} if path.is_file() else {}
        chosen = _chosen(rows, [fits.get(row["sample_key"]) for row in rows], count)
        return [
            SyntheticImage(
                task=task,
                caption=rows[place]["caption"],
                source=rows[place]["source"],
                class_name=rows[place]["class_name"] or "",
                key=rows[place]["sample_key"],
                uri=uri,
                fit=fits.get(rows[place]["sample_key"]),
                tags=tags,
            )
            for place, tags in chosen.items()
            if (uri := self._thumbnail(rows[place])) is not None
        ]

    def _forgotten(self, number: int, task: str, count: int) -> list[ForgottenImage]:
        path = diagnostics_file(self.run.path, "forgotten", number, task)
        if not path.is_file():
            return []
        of_class: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self._replay_rows(task) if self.shards is not None else []:
            of_class.setdefault((row["source"], row["class_name"]), []).append(row)
        found = []
        for row in evenly_spaced(read_diagnostics(path, "forgotten").to_pylist(), count):
            beside = of_class.get((row["dataset"], row["class_name"]), [])[:1]
            found.append(
                ForgottenImage(
                    task=task,
                    dataset=row["dataset"],
                    class_name=row["class_name"],
                    predicted_class_name=row["predicted_class_name"],
                    num_forgotten=row["num_forgotten"],
                    uri=_data_uri(row["picture"]),
                    synthetic=[(uri, other["caption"]) for other in beside if (uri := self._thumbnail(other)) is not None],
                )
            )
        return found

    def _replay_rows(self, task: str) -> list[dict[str, Any]]:
        path = self.run.path / "replay" / f"{task}.parquet"
        return read_index(path)[0].to_pylist() if path.is_file() else []

    def _thumbnail(self, row: Mapping[str, Any]) -> str | None:
        """None from the first image on that cannot be read: a server that has gone is not asked for the others."""
        if self.shards is None:
            return None
        try:
            content = read_image_bytes(self.shards, row["shard"], row["byte_offset"], row["byte_size"], row["sha256"])
            image = decode_rgb(content, f"{tar_name(self.shards, row['shard'])} ({row['sample_key']})", ShardError)
        except GiftError as error:
            _tell_without(str(self.shards), error)
            self.shards = None
            return None
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80)
        return _data_uri(buffer.getvalue())


def _folder_with_index(location: str) -> Folder | None:
    """The shards a run was trained on, if they can still be had."""
    try:
        folder = open_folder(location)
        return folder if index_file(folder).is_file() else None
    except GiftError as error:
        _tell_without(location, error)
        return None


def _tell_without(location: str, error: GiftError) -> None:
    _log.warning("No synthetic pictures of a run over %s: %s", location, error)


def evenly_spaced(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` of the rows at even distances; all of them if they are fewer."""
    return list(rows) if len(rows) <= count else [rows[place * len(rows) // count] for place in range(count)]


def _chosen(rows: Sequence[Any], fits: Sequence[Mapping[str, Any] | None], count: int) -> dict[int, tuple[str, ...]]:
    """Places of the images to show, ascending, and why: a quarter each for the three extremes, the rest evenly spaced."""
    tags: dict[int, list[str]] = {}
    known = [(place, fit) for place, fit in enumerate(fits) if fit is not None]
    rules: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "taught most": lambda fit: min(0.0, fit["probability_before"] - fit["probability_after"]),
        "fits worst": lambda fit: fit["probability_after"],
        "disagree most": lambda fit: -fit["divergence"],
    }
    for tag, rule in rules.items():
        ranked = sorted((rule(fit), place) for place, fit in known)
        for value, place in ranked[: count // 4]:
            if value != 0:  # an image that gained nothing taught nothing
                tags.setdefault(place, []).append(tag)
    others = [place for place in range(len(rows)) if place not in tags]
    for place in evenly_spaced(others, max(0, count - len(tags))):
        tags[place] = []
    return {place: tuple(tags[place]) for place in sorted(tags)[: max(count, 0)]}


def _data_uri(content: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(content).decode()
