"""What a plan will cost, told before any GPU starts: images, disk and hours."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from gift_shared.errors import ConfigError
from gift_shared.parquet_files import read_index
from gift_shared.schema import SHARD_FOLDER
from gift_shared.worker_logs import render_times

ASSUMED_BYTES_PER_IMAGE = 50_000  # a 512 x 512 JPEG of quality 75; said to be an assumption wherever it is used
BYTES_PER_SAMPLE = 3_500  # tar headers, padding, caption and JSON


@dataclass(frozen=True)
class Rates:
    """Images per second of all workers together, and bytes per encoded image; None where nothing is known."""

    images_per_second: float | None
    bytes_per_image: float | None


def measured_rates(out: Path) -> Rates:
    """Rates of an earlier render (of one worker), from its timings and images. Raises ConfigError if it has none."""
    timings = render_times(out).values()
    num_images, seconds = sum(images for images, _ in timings), sum(seconds for _, seconds in timings)
    if not num_images or not seconds:
        raise ConfigError(f"{out} holds no timings of a render to measure from; give --images-per-second instead.")
    shard_files = sorted((out / SHARD_FOLDER).glob("*.parquet"))[:20]
    sizes = pa.concat_arrays([read_index(path)[0]["byte_size"].combine_chunks() for path in shard_files]).drop_null()
    return Rates(num_images / seconds, pc.mean(sizes).as_py())


def cost_lines(num_images: int, rates: Rates) -> list[str]:
    """The estimate in words, one line each for images, disk and time."""
    bytes_per_image = rates.bytes_per_image or ASSUMED_BYTES_PER_IMAGE
    basis = "measured" if rates.bytes_per_image else "assumed; a 512 x 512 JPEG"
    lines = [
        f"images  {num_images:,}",
        f"disk    {readable_bytes(num_images * (bytes_per_image + BYTES_PER_SAMPLE))}  ({bytes_per_image / 1000:.1f} kB an image, {basis})",
    ]
    if rates.images_per_second:
        hours = num_images / rates.images_per_second / 3600
        lines.append(f"time    {readable_hours(hours)}  ({rates.images_per_second:.2f} images/s; divide by the number of workers)")
    else:
        lines.append("time    unknown: give --images-per-second R, or --measured OUT with a folder rendered earlier")
    return lines


def readable_bytes(count: float) -> str:
    """Bytes in decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def readable_hours(hours: float) -> str:
    """Hours, or minutes and seconds where that is shorter."""
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.0f} seconds"
