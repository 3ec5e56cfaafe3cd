"""From shards to model-ready tensors against a plain image folder; memory over 1,000 shards; a pool of a million samples.

python benchmarks/streaming.py [--quick]

The plain way: torchvision's ImageFolder, Compose(Resize, CenterCrop, ToTensor, Normalize), DataLoader. Ours: the trainer's own objects
(ReplayDataset, stream, place_replay) on shards of the same JPEG bytes. Both shuffle, decode with PIL and use as many loader processes;
model-ready is a normalised float32 batch in the training process. A pass is EPOCHS epochs, loader processes staying alive in between.
"""

import argparse
import hashlib
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import Finding, in_own_process, peak_gigabytes, report, seconds_each
from PIL import Image

BATCH_SIZE = 64
EPOCHS = 4
MINI_PIXELS, FULL_PIXELS = 64, 512  # of the files; the models see MINI_MODEL and FULL_MODEL
MINI_MODEL, FULL_MODEL = 32, 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
POOL_ROWS, POOL_SHARDS, POOL_IMAGES_PER_TASK = 1_000_000, 1_000, 1_000
CLASSES_OF_SOURCE = 100
ROWS_PER_SHARD, STREAMED = 20, 4_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and shards")
    parser.add_argument("--readme", action="store_true", help="what the pages claim: memory over the fewest and the most shards alone")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of both sides")
    parser.add_argument("--memory", nargs=2, metavar=("FOLDER", "SHARDS"), help="what a measured process runs")
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(stream_memory(Path(arguments.memory[0]), int(arguments.memory[1]))))
        return
    findings: list[Finding] = []
    details: dict[str, Any] = {"workers": arguments.workers, "batch_size": BATCH_SIZE}
    for file_pixels, model_pixels, num_images in (
        (FULL_PIXELS, FULL_MODEL, 64 if arguments.quick else 256),
        (MINI_PIXELS, MINI_MODEL, 512 if arguments.quick else 2_048),
    ):
        name = f"{file_pixels} px JPEG to {model_pixels}"
        rates = loading_rates(file_pixels, model_pixels, num_images, arguments.workers)
        details[name] = {"images": num_images, "images_per_second": rates}
        findings.append(Finding(what=f"{name}: plain folder", value=rates["plain"], unit="images/s"))
        findings.append(Finding(what=f"{name}: shards, nothing kept", value=rates["shards"], unit="images/s"))
        findings.append(Finding(what=f"{name}: nothing kept against plain", value=rates["shards"] / rates["plain"], unit="x", target=1))
        findings.append(Finding(what=f"{name}: images kept against plain", value=rates["kept"] / rates["plain"], unit="x", target=2))
    shard_counts = (1, 10, 100) if arguments.quick else (1, 10, 100, 1_000)
    findings += memory_findings(details, (shard_counts[0], shard_counts[-1]) if arguments.readme else shard_counts)
    findings += pool_findings(details, POOL_ROWS // 10 if arguments.quick else POOL_ROWS)
    report("streaming", findings, details, is_quick=arguments.quick)


def loading_rates(file_pixels: int, model_pixels: int, num_images: int, workers: int) -> dict[str, float]:
    """Images per second: plain, ours when every image is decoded each time, ours when the images were kept by an earlier pass."""
    with tempfile.TemporaryDirectory() as folder:
        contents = [photo(number, file_pixels) for number in range(num_images)]
        plain_folder(Path(folder) / "plain", contents)
        rows = write_pool(Path(folder) / "shards", contents, num_shards=4)
        passes = {
            "plain": plain_pass(Path(folder) / "plain", model_pixels, workers),
            "shards": shard_pass(Path(folder) / "shards", rows, model_pixels, workers, cache_bytes=0),
            "kept": shard_pass(Path(folder) / "shards", rows, model_pixels, workers, cache_bytes=10**9),
        }
        seconds = seconds_each(passes, rounds=2)  # the warm-up round fills the memory of "kept" and the file system's of the others
    return {name: EPOCHS * num_images / taken for name, taken in seconds.items()}


def plain_pass(folder: Path, pixels: int, workers: int) -> Callable[[], int]:
    """The usual loader."""
    import torch
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.Resize(pixels, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(pixels),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    dataset = datasets.ImageFolder(str(folder), transform)

    def one_pass() -> int:
        options = {"batch_size": BATCH_SIZE, "shuffle": True, "num_workers": workers, "persistent_workers": workers > 0}
        loader = torch.utils.data.DataLoader(dataset, **options)
        return sum(len(images) for _ in range(EPOCHS) for images, _ in loader)

    return one_pass


def shard_pass(out: Path, rows: pa.Table, pixels: int, workers: int, cache_bytes: int) -> Callable[[], int]:
    """The trainer's stream, images placed and normalised."""
    import torch

    from gift_train.clip.normalise import Normalise
    from gift_train.data.batches import BatchOrder, stream
    from gift_train.data.loader import Loading
    from gift_train.data.replay import ReplayCollate, ReplayDataset
    from gift_train.data.transforms import image_transforms

    dataset = ReplayDataset(out, rows, image_transforms(pixels).evaluation, cache_bytes)
    order = BatchOrder(num_samples=len(rows), batch_size=BATCH_SIZE, seed=0, name="replay")
    collate = ReplayCollate(lambda captions: torch.zeros(len(captions), 8, dtype=torch.long))
    normalise = Normalise(MEAN, STD, torch.device("cpu"))
    passes = itertools.count()

    def one_pass() -> int:
        num_batches = EPOCHS * order.batches_per_epoch
        first = next(passes) * num_batches
        positions = range(first, first + num_batches)
        return sum(len(normalise(batch.images)) for batch in stream(dataset, order, collate, positions, Loading(num_workers=workers)))

    return one_pass


def memory_findings(details: dict[str, Any], shard_counts: tuple[int, ...]) -> Iterator[Finding]:
    """Peak memory of a process that streams as many images from few shards as from many, nothing being kept."""
    with tempfile.TemporaryDirectory() as folder:
        contents = [photo(number, MINI_PIXELS) for number in range(ROWS_PER_SHARD)]
        write_pool(Path(folder), contents * shard_counts[-1], num_shards=shard_counts[-1])
        peaks = {count: in_own_process(__file__, "--memory", folder, str(count))["gigabytes"] for count in shard_counts}
    details["peak_gigabytes_by_shards"] = peaks
    grown = (peaks[shard_counts[-1]] - peaks[1]) * 1000
    yield Finding(what=f"peak memory streaming {shard_counts[-1]:,} shards", value=peaks[shard_counts[-1]], unit="GB")
    yield Finding(what="more than streaming 1 shard", value=grown, unit="MB", target=50, at_most=True)


def stream_memory(folder: Path, num_shards: int) -> dict[str, float]:
    """Stream STREAMED images from the first shards of a pool; the most memory this took."""
    from gift_shared.parquet_files import read_output_index

    rows, _ = read_output_index(folder)
    one_pass = shard_pass(folder, rows.slice(0, num_shards * ROWS_PER_SHARD), MINI_MODEL, 0, cache_bytes=0)
    streamed = 0
    while streamed < STREAMED:
        streamed += one_pass()
    return {"gigabytes": peak_gigabytes()}


def pool_findings(details: dict[str, Any], num_rows: int) -> Iterator[Finding]:
    """Opening a pool and selecting a thousand images for each of eleven tasks: index, draw, every chosen image's place and digest."""
    from gift_shared.manifests import Manifests
    from gift_shared.shards import require_images
    from gift_train.data.replay import ReplayDataset
    from gift_train.data.selection import ReplaySelection, select_replay
    from gift_train.data.transforms import image_transforms

    order = Manifests(()).order("mtil-1")
    rule = ReplaySelection(num_images=POOL_IMAGES_PER_TASK, captions="all", seed=42)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_large_pool(out, num_rows, (order.pretraining_source, *order.tasks))
        steps: dict[str, float] = {}
        started = time.perf_counter()
        selected = select_replay(out, order, rule)
        steps["index and draw"] = time.perf_counter() - started
        require_images(out, selected.values())
        steps["places and digests"] = time.perf_counter() - started - steps["index and draw"]
        datasets = [ReplayDataset(out, rows, image_transforms(FULL_MODEL).evaluation) for rows in selected.values()]
        seconds = time.perf_counter() - started
    assert sum(map(len, datasets)) == len(order.tasks) * POOL_IMAGES_PER_TASK
    details["pool"] = {"rows": num_rows, "shards": POOL_SHARDS, "selected": sum(map(len, datasets)), "seconds": steps | {"all": seconds}}
    yield Finding(what=f"open {num_rows:,} samples, select 11,000", value=seconds, unit="s", target=2, at_most=True)


def photo(number: int, pixels: int) -> bytes:
    """A JPEG with the detail of a photograph: noise at several scales. 512 pixels make about 50 kB at quality 75."""
    rng = np.random.default_rng(number)
    scales = [(4, 70.0), (16, 40.0), (64, 20.0), (pixels, 4.0)]
    canvas = np.full((pixels, pixels, 3), 128.0)
    for size, strength in scales:
        layer = Image.fromarray(rng.integers(0, 256, (min(size, pixels),) * 2 + (3,), dtype=np.uint8))
        canvas += strength * (np.asarray(layer.resize((pixels, pixels), Image.Resampling.BICUBIC), dtype=np.float64) / 127.5 - 1)
    buffer = io.BytesIO()
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def plain_folder(folder: Path, contents: list[bytes]) -> None:
    """The images as files in ten class folders."""
    for number, content in enumerate(contents):
        path = folder / f"class-{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_pool(out: Path, contents: list[bytes], num_shards: int) -> pa.Table:
    """The same bytes as shards of stage 1, by its own writer; returns the rows of the index."""
    from gift_generate.images.image_source import Picture
    from gift_generate.output.shard_writer import write_shard
    from gift_shared.parquet_files import read_index, write_index
    from gift_shared.schema import SINCE_VERSION_2, SampleStatus
    from gift_shared.shards import shard_rows

    pixels = Image.open(io.BytesIO(contents[0])).width
    per_shard = -(-len(contents) // num_shards)
    tables = []
    for number in range(num_shards):
        part = contents[number * per_shard : (number + 1) * per_shard]
        shard = f"pool-{number:05d}"
        rows = [
            dict.fromkeys(SINCE_VERSION_2)
            | {
                "task": "pool", "index": index, "sample_key": f"pool-{number:05d}-{index:05d}", "caption": f"a photo of a {index % 50}.",
                "source": "imagenet", "class_name": str(index % 50), "class_index": index % 50, "sample_seed": 1, "guidance_scale": 7.5,
                "denoising_steps": 50, "shard": shard,
            }
            for index in range(len(part))
        ]  # fmt: skip
        made = {
            "status": SampleStatus.OK,
            "message": "",
            "attempts": 1,
            "used_seed": 1,
            "suffix": ".jpg",
            "width": pixels,
            "height": pixels,
        }
        write_shard(out, shard, rows, [Picture(**made, content=content) for content in part], {})
        tables.append(read_index(shard_rows(out, shard))[0])
    rows = pa.concat_tables(tables)
    write_index(out / "index.parquet", rows, {})
    return rows


def write_large_pool(out: Path, num_rows: int, sources: tuple[str, ...]) -> None:
    """An index of so many rows over POOL_SHARDS tars of one image each, which all rows of a shard point to."""
    content = photo(0, MINI_PIXELS)
    (out / "shards").mkdir()
    for shard in range(POOL_SHARDS):
        (out / f"shards/pool-{shard:05d}.tar").write_bytes(bytes(512) + content)
    number = np.arange(num_rows)
    labels = number * len(sources) * CLASSES_OF_SOURCE // num_rows % CLASSES_OF_SOURCE  # copies of a class stand together, as in a plan
    keys = [f"pool-{place:07d}" for place in range(num_rows)]
    columns = {
        "task": pa.repeat("pool", num_rows),
        "index": pa.array(number),
        "sample_key": keys,
        "caption": [f"a photo of a {label}." for label in labels.tolist()],
        "source": pa.array(sources).take(pa.array(number * len(sources) // num_rows)),
        "class_name": [str(label) for label in labels.tolist()],
        "class_index": pa.array(labels.astype(np.int32)),
        "sample_seed": pa.array(number),
        "guidance_scale": pa.repeat(pa.scalar(7.5, pa.float32()), num_rows),
        "denoising_steps": pa.repeat(pa.scalar(50, pa.int32()), num_rows),
        "shard": pa.array([f"pool-{shard:05d}" for shard in range(POOL_SHARDS)]).take(pa.array(number * POOL_SHARDS // num_rows)),
        "status": pa.repeat("ok", num_rows),
        "message": pa.repeat("", num_rows),
        "attempts": pa.repeat(pa.scalar(1, pa.int32()), num_rows),
        "used_seed": pa.array(number),
        "width": pa.repeat(pa.scalar(MINI_PIXELS, pa.int32()), num_rows),
        "height": pa.repeat(pa.scalar(MINI_PIXELS, pa.int32()), num_rows),
        "image_name": [f"{key}.jpg" for key in keys],
        "byte_offset": pa.repeat(pa.scalar(512, pa.int64()), num_rows),
        "byte_size": pa.repeat(pa.scalar(len(content), pa.int64()), num_rows),
        "sha256": [hashlib.sha256(content).hexdigest()] * num_rows,
    }
    from gift_shared.parquet_files import write_index
    from gift_shared.schema import INDEX_SCHEMA

    filled = [columns.get(field.name, pa.nulls(num_rows, field.type)) for field in INDEX_SCHEMA]
    write_index(out / "index.parquet", pa.table(filled, schema=INDEX_SCHEMA), {})


if __name__ == "__main__":
    main()
