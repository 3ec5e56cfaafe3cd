"""Some of the synthetic images that each task of a run was held to, read back from the shards through the run's own selection."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image

from gift_shared.shards import read_image_bytes
from gift_shared.tables import read_index
from gift_train.report.runs import Run

THUMBNAIL_PIXELS = 96


@dataclass(frozen=True)
class GalleryImage:
    """One synthetic image as a data URI, with what it was asked to show."""

    caption: str
    source: str
    uri: str


def task_galleries(run: Run, images_per_task: int) -> dict[str, list[GalleryImage]]:
    """For each task of the run, evenly spaced images of its replay set. Empty where the run replays nothing or its shards moved."""
    shards = (run.record.get("shards") or {}).get("path")
    if shards is None or not Path(shards).is_dir():
        return {}
    galleries = {}
    for dataset in run.datasets:
        selection = run.path / "replay" / f"{dataset}.parquet"
        if selection.is_file():
            rows, _ = read_index(selection)
            galleries[dataset] = [_image(Path(shards), row) for row in _evenly_spaced(rows, images_per_task)]
    return galleries


def _evenly_spaced(rows: pa.Table, count: int) -> list[dict]:
    places = [place * len(rows) // count for place in range(count)] if len(rows) > count else range(len(rows))
    return rows.take(pa.array(places, pa.int64())).to_pylist()


def _image(shards: Path, row: dict) -> GalleryImage:
    content = read_image_bytes(shards, row["shard"], row["byte_offset"], row["byte_size"], row["sha256"])
    image = Image.open(io.BytesIO(content)).convert("RGB")
    # Small pictures are enlarged without smoothing: one should see what the model sees.
    resampling = Image.Resampling.NEAREST if image.width < THUMBNAIL_PIXELS else Image.Resampling.LANCZOS
    image = image.resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), resampling)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return GalleryImage(row["caption"], row["source"], uri)
