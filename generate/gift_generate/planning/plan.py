"""Captions -> ordered rows: every sample is decided here, before any model is loaded. Pure: arguments in, a table out."""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from gift_generate.planning.captions import Caption, CaptionFile, CaptionMixture, class_captions, read_caption_file
from gift_generate.planning.plan_request import PlanRequest, Seeding, check_numbers
from gift_shared import keys
from gift_shared.errors import ConfigError, PlanError
from gift_shared.manifests import Manifests, OrderManifest
from gift_shared.parquet_files import key_fault
from gift_shared.schema import PLAN_SCHEMA, PlanKind

POOL_TASK = "pool"
MOST_IMAGES_PER_TASK = 1_000_000  # keys have six digits and must sort by index
IMPORTED = "imported"  # in a plan's metadata: its images were made elsewhere
_ROWS_AT_ONCE = 65_536
LONGEST_KEY = 90  # with the suffix within the 100 bytes of a plain tar name


class _Sample(NamedTuple):
    """What a plan decides of a sample besides what is the same for all."""

    task: str
    number: int  # `index` in the plan, which is a method of every tuple
    sample_key: str
    caption: Caption
    sample_seed: int
    shard: str


def make_plan(request: PlanRequest, manifests: Manifests) -> tuple[pa.Table, dict[str, str]]:
    """Rows in plan order and the metadata that records how they were made. Raises ConfigError, ManifestError, DataError."""
    _check(request)
    files = [(read_caption_file(manifests.captions_file(str(file.path))), file.weight) for file in request.caption_files or ()]
    names = [file.source for file, _ in files]
    if len(set(names)) != len(names):
        raise ConfigError(f"Two caption files have one name ({', '.join(names)}); rename one, images are told apart by it.")
    if request.kind == PlanKind.PER_TASK:
        samples = _per_task_samples(request, manifests, files)
    else:
        samples = _pool_samples(request, manifests, files)
    rows = _table(request, samples)
    check_plan(rows, "This plan")
    return rows, _metadata(request, files)


def _check(request: PlanRequest) -> None:
    wanted, other = ("images_per_task", "images_per_class")
    if request.kind == PlanKind.POOL:
        wanted, other = other, wanted
    if getattr(request, wanted) is None or getattr(request, other) is not None:
        raise ConfigError(f"A {request.kind} plan needs --{wanted.replace('_', '-')} and not --{other.replace('_', '-')}.")
    if (request.order is None) == (not request.datasets):
        raise ConfigError("A plan is made for an --order, or (kind pool only) for one or more --dataset: give one of the two.")
    if request.kind == PlanKind.PER_TASK and request.order is None:
        raise ConfigError("A per-task plan needs an --order: which classes a task is replayed with follows from the tasks before it.")
    if request.kind == PlanKind.POOL and request.seeding == Seeding.PUBLISHED:
        raise ConfigError("--seeding published is the rule of per-task plans: a pool has no task positions.")
    if request.kind == PlanKind.POOL and (request.draws_per_task is not None or request.class_name_weight == 0):
        raise ConfigError("A pool has n images for every class name: --draws-per-task and a class-name weight of 0 do not apply.")
    check_numbers(request)
    if request.draws_per_task is not None and request.images_per_task is not None and request.draws_per_task < request.images_per_task:
        raise ConfigError(f"--draws-per-task {request.draws_per_task} is less than --images-per-task {request.images_per_task}.")
    most = keys.POSITION_SEED_STRIDE if request.seeding == Seeding.PUBLISHED else MOST_IMAGES_PER_TASK
    if max(request.images_per_task or 0, request.images_per_class or 0) > most:
        raise ConfigError(f"At most {most} images a task or class with --seeding {request.seeding}: beyond it keys or seeds would repeat.")


def _per_task_samples(request: PlanRequest, manifests: Manifests, files: list[tuple[CaptionFile, float]]) -> Iterator[_Sample]:
    """GIFT's plan: the pool of task t is the pretraining source and the tasks before t, never t (METHODS 3.1).

    One stream runs through all tasks and is never reseeded; draws beyond the images asked for are made and dropped, so
    the first images of a long list and a short list are the same.
    """
    assert request.order is not None
    assert request.images_per_task is not None
    order = manifests.order(request.order)
    draws = request.draws_per_task or max(request.images_per_task, order.captions_drawn or 0)
    mixture = CaptionMixture(request.seed, request.class_name_weight, files)
    pool = class_captions(manifests.task(order.pretraining_source))
    for position, task in enumerate(order.tasks, start=1):
        captions = [mixture.draw(pool) for _ in range(draws)]
        for index, caption in enumerate(captions[: request.images_per_task]):
            sample_key = keys.task_sample_key(task, index)
            if request.seeding == Seeding.PUBLISHED:
                sample_seed = keys.published_seed(request.seed, position, index)
            else:
                sample_seed = keys.hashed_seed(request.seed, sample_key)
            yield _Sample(task, index, sample_key, caption, sample_seed, keys.shard_id(task, index // request.images_per_shard))
        if not request.is_pretraining_only:
            pool = pool + class_captions(manifests.task(task))


def _pool_samples(request: PlanRequest, manifests: Manifests, files: list[tuple[CaptionFile, float]]) -> Iterator[_Sample]:
    """Equally many images for every class name, source after source; a caption file's share is its weight against the class names'.

    A shard never mixes sources, so a source can be copied or left out by its shards.
    """
    assert request.images_per_class is not None
    stream = random.Random(request.seed)
    index = 0
    num_class_images = 0
    for source in _pool_sources(request, manifests):
        captions = class_captions(manifests.task(source))
        copies = ((caption, copy) for caption in captions for copy in range(request.images_per_class))
        for position, (caption, copy) in enumerate(copies):
            assert caption.class_index is not None
            sample_key = keys.pool_sample_key(source, caption.class_index, copy)
            yield _pool_sample(request, index, position, sample_key, caption)
            index += 1
        num_class_images += len(captions) * request.images_per_class
    for file, weight in files:
        num_images = round(num_class_images * weight / request.class_name_weight)
        for position, line in enumerate(_spread(stream, len(file), num_images)):
            sample_key = keys.pool_sample_key(file.source, *divmod(position, 100_000))
            yield _pool_sample(request, index, position, sample_key, file[line])
            index += 1


def _pool_sample(request: PlanRequest, index: int, position: int, sample_key: str, caption: Caption) -> _Sample:
    shard = keys.shard_id(caption.source, position // request.images_per_shard)
    return _Sample(POOL_TASK, index, sample_key, caption, keys.hashed_seed(request.seed, sample_key), shard)


def _pool_sources(request: PlanRequest, manifests: Manifests) -> list[str]:
    if request.order is None:
        return list(dict.fromkeys(request.datasets or ()))
    order: OrderManifest = manifests.order(request.order)
    tasks = () if request.is_pretraining_only else order.tasks
    return list(dict.fromkeys((order.pretraining_source, *tasks)))


def _spread(stream: random.Random, num_lines: int, num_images: int) -> Iterator[int]:
    """Line numbers in random order, none a second time before all were used."""
    while num_images > 0:
        take = min(num_images, num_lines)
        yield from stream.sample(range(num_lines), take)
        num_images -= take


def _table(request: PlanRequest, samples: Iterator[_Sample]) -> pa.Table:
    """All rows, gathered some at a time: a million samples as Python objects would take three times what the table does."""
    batches = []
    while some := list(islice(samples, _ROWS_AT_ONCE)):
        tasks, indices, sample_keys, captions, seeds, shards = zip(*some, strict=True)
        texts, sources, class_names, class_indices = zip(*captions, strict=True)
        columns = {
            "task": tasks,
            "index": indices,
            "sample_key": sample_keys,
            "caption": texts,
            "source": sources,
            "class_name": class_names,
            "class_index": class_indices,
            "sample_seed": seeds,
            "guidance_scale": pa.repeat(pa.scalar(request.guidance_scale, pa.float32()), len(some)),
            "denoising_steps": pa.repeat(pa.scalar(request.denoising_steps, pa.int32()), len(some)),
            "shard": shards,
        }
        batches.append(pa.record_batch([pa.array(columns[field.name], field.type) for field in PLAN_SCHEMA], schema=PLAN_SCHEMA))
    return pa.Table.from_batches(batches, schema=PLAN_SCHEMA).combine_chunks()


def _metadata(request: PlanRequest, files: list[tuple[CaptionFile, float]]) -> dict[str, str]:
    arguments = asdict(request)
    # The digest and not the path says which captions were drawn: the same file elsewhere gives the same plan, byte for byte.
    arguments["caption_files"] = [{"source": file.source, "sha256": file.sha256, "weight": weight} for file, weight in files]
    arguments["datasets"] = list(request.datasets or ())
    return {"arguments": json.dumps(arguments, sort_keys=True), "kind": request.kind, "order": request.order or ""}


def check_plan(rows: pa.Table, where: Path | str) -> None:
    """What rendering relies on: safe and unique names, whole shards in a row, keys ascending in each. Raises PlanError."""
    for column in ("sample_key", "shard"):
        if (fault := key_fault(column, rows[column])) is not None:
            raise PlanError(f"{where}: {fault}. Make the plan again.")
    if rows.num_rows == 0:
        raise PlanError(f"{where} asks for no image.")
    if pc.count_distinct(rows["sample_key"]).as_py() != rows.num_rows:
        raise PlanError(f"{where}: a sample key stands twice; are two datasets or caption files named alike but for punctuation?")
    longest = pc.max(pc.utf8_length(rows["sample_key"])).as_py()
    if longest > LONGEST_KEY:
        raise PlanError(f"{where}: a sample key of {longest} characters does not fit a tar; give the dataset a shorter name.")
    shards = shard_slices(rows)
    if len({shard for shard, _, _ in shards}) != len(shards):
        raise PlanError(f"{where}: the rows of a shard must stand together; are two tasks named alike but for punctuation?")
    same_shard = pc.equal(rows["shard"][1:], rows["shard"][:-1])
    descends = pc.less_equal(rows["sample_key"][1:], rows["sample_key"][:-1])
    if pc.any(pc.and_(same_shard, descends)).as_py():
        raise PlanError(f"{where}: the sample keys of a shard must ascend. Make the plan again.")
    if pc.min(rows["denoising_steps"]).as_py() < 1 or pc.min(rows["guidance_scale"]).as_py() < 0:
        raise PlanError(f"{where}: denoising steps must be at least 1 and guidance scales at least 0. Make the plan again.")


def shard_slices(rows: pa.Table) -> list[tuple[str, int, int]]:
    """(shard, first row, number of rows) of every shard in plan order."""
    encoded = pc.run_end_encode(rows["shard"].combine_chunks())
    ends = encoded.run_ends.to_pylist()
    starts = [0, *ends[:-1]]
    return [(shard, start, end - start) for shard, start, end in zip(encoded.values.to_pylist(), starts, ends, strict=True)]
