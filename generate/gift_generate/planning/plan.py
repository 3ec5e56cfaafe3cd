"""Captions -> ordered rows: every sample is decided here, before any model is loaded. Pure: arguments in, a table out."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from gift_generate.planning.captions import (
    Caption,
    CaptionFile,
    CaptionMixture,
    ClassEntry,
    class_entries,
    line_numbers,
    read_caption_file,
    without_repeats,
)
from gift_generate.planning.class_counts import read_class_counts
from gift_generate.planning.from_table import fill_table
from gift_generate.planning.plan_record import plan_metadata
from gift_generate.planning.plan_request import PlanRequest, Sampling, Seeding
from gift_generate.planning.request_rules import check_request, plan_kind, refuse_shard_size
from gift_generate.planning.shard_size import shard_size
from gift_shared import keys
from gift_shared.caption_columns import ColumnWish
from gift_shared.caption_files import has_columns
from gift_shared.errors import ConfigError, PlanError
from gift_shared.manifests import Manifests, TaskManifest
from gift_shared.parquet_files import key_fault
from gift_shared.schema import PLAN_SCHEMA, SINCE_VERSION_2, PlanKind

POOL_TASK = "pool"
CAPTIONS_TASK = "captions"
IMPORTED = "imported"  # in a plan's metadata: its images were made elsewhere
_ROWS_AT_ONCE = 65_536
LONGEST_KEY = 90  # with the suffix within the 100 bytes of a plain tar name
SIZE_STEP, LONGEST_SIDE = 8, 65_496  # pixels: latents are an eighth of an image or less, a JPEG has no longer side


class _Sample(NamedTuple):
    """What a plan decides of a sample besides what is the same for all."""

    task: str
    number: int  # `index` in the plan, which is a method of every tuple
    sample_key: str
    caption: Caption
    sample_seed: int
    group: str  # task or source: what a shard never mixes


@dataclass(frozen=True)
class _Sources:
    """What captions are taken from."""

    manifests: Manifests
    files: list[tuple[CaptionFile, float]]


def make_plan(request: PlanRequest, manifests: Manifests, images_per_second: float | None = None) -> tuple[pa.Table, dict[str, str]]:
    """Rows in plan order and the metadata that records how they were made.

    images_per_second: of one worker, where the shard size is chosen by time. Raises ConfigError, ManifestError, DataError, PlanError.
    """
    check_request(request)
    kind = plan_kind(request)
    files: list[tuple[CaptionFile, float]] = []
    filled = None
    if kind is PlanKind.TABLE:
        filled = fill_table(request)
        rows = filled.rows
    else:
        files = _read_files(request, manifests)
        sources = _Sources(manifests, files)
        samples = {PlanKind.PER_TASK: _per_task_samples, PlanKind.POOL: _pool_samples, PlanKind.CAPTIONS: _caption_samples}[kind]
        rows = _table(request, samples(request, sources))
    if not rows.num_rows:
        raise PlanError("This plan asks for no image.")
    size = None
    if filled is not None and filled.has_shards:
        refuse_shard_size(request)
    else:
        groups = _runs(rows["shard"])
        size = shard_size(request, [length for _, length in groups], images_per_second)
        rows = _cut(rows, groups, size)
    check_plan(rows, "This plan" if filled is None else str(request.table))
    return rows, plan_metadata(request, kind, size, files, filled)


def _read_files(request: PlanRequest, manifests: Manifests) -> list[tuple[CaptionFile, float]]:
    asked = [(manifests.captions_file(str(file.path)), file.weight) for file in request.caption_files or ()]
    if request.caption_column is not None and not any(has_columns(path) for path, _ in asked):
        raise ConfigError("--caption-column: no --caption-file has columns, a line of .txt is a caption.")
    wish = ColumnWish(request.caption_column, "--caption-column")
    files = [read_caption_file(path, wish) for path, _ in asked]
    names = [keys.slug(file.source) for file in files]
    if len(set(names)) != len(names):
        told = ", ".join(file.source for file in files)
        raise ConfigError(f"Two caption files have one name ({told}); rename one, images are told apart by it.")
    if request.drops_repeats:
        files = without_repeats(files)
    return list(zip(files, [weight for _, weight in asked], strict=True))


def _per_task_samples(request: PlanRequest, sources: _Sources) -> Iterator[_Sample]:
    """GIFT's plan: the pool of task t is the pretraining source and the tasks before t, never t (METHODS 3.1).

    One stream runs through all tasks and is never reseeded; draws beyond the images asked for are made and dropped, so
    the first images of a long list and a short list are the same.
    """
    assert request.order is not None
    assert request.images_per_task is not None
    order = sources.manifests.order(request.order)
    sampling = request.sampling or Sampling.REPLACEMENT
    draws = request.draws_per_task or request.images_per_task
    if request.draws_per_task is None and sampling == Sampling.REPLACEMENT:  # in another one no caption may be used up unseen
        draws = max(draws, order.captions_drawn or 0)
    mixture = CaptionMixture(request.seed, request.class_name_weight, sources.files, sampling)
    pool = class_entries(sources.manifests.task(order.pretraining_source), request.templates)
    for position, (task, manifest) in enumerate(sources.manifests.tasks_of(order).items(), start=1):
        captions = [mixture.draw(pool) for _ in range(draws)]
        for index, caption in enumerate(captions[: request.images_per_task]):
            sample_key = keys.task_sample_key(task, index)
            if request.seeding == Seeding.PUBLISHED:
                sample_seed = keys.published_seed(request.seed, position, index)
            else:
                sample_seed = keys.hashed_seed(request.seed, sample_key)
            yield _Sample(task, index, sample_key, caption, sample_seed, group=task)
        if not request.is_pretraining_only:
            pool = pool + class_entries(manifest, request.templates)


def _pool_samples(request: PlanRequest, sources: _Sources) -> Iterator[_Sample]:
    """So many images for every class name, source after source; a caption file's share is its weight against the class names'.

    A shard never mixes sources, so a source can be copied or left out by its shards. Templates are gone through in turn, from one class
    name to the next.
    """
    stream = random.Random(request.seed)
    index = 0
    entries = [entry for source in _pool_sources(request, sources.manifests) for entry in class_entries(source, request.templates)]
    for entry, copy, template in _copies(entries, _class_counts(request, entries)):
        yield _pool_sample(request, POOL_TASK, index, keys.pool_sample_key(entry.source, entry.class_index, copy), entry.caption(template))
        index += 1
    num_class_images = index
    for file, weight in sources.files:
        num_images = round(num_class_images * weight / request.class_name_weight)
        for sample_key, caption in _of_file(request.sampling or Sampling.SHUFFLED, stream, file, num_images):
            yield _pool_sample(request, POOL_TASK, index, sample_key, caption)
            index += 1


def _class_counts(request: PlanRequest, entries: list[ClassEntry]) -> Mapping[ClassEntry, int]:
    counts = dict.fromkeys(entries, request.images_per_class or 0)
    if request.class_counts is not None:
        counts |= read_class_counts(request.class_counts, entries)
    return counts


def _copies(entries: list[ClassEntry], counts: Mapping[ClassEntry, int]) -> Iterator[tuple[ClassEntry, int, int]]:
    """Every image of a class name: (entry, number among its own, template)."""
    made = 0
    for position, entry in enumerate(entries):
        made = 0 if not position or entry.source != entries[position - 1].source else made
        for copy in range(counts[entry]):
            yield entry, copy, made
            made += 1


def _caption_samples(request: PlanRequest, sources: _Sources) -> Iterator[_Sample]:
    """The captions of files alone, file after file: one image each, or so many in all that are shared by weight."""
    stream = random.Random(request.seed)
    total = sum(weight for _, weight in sources.files)
    index, shared = 0, 0.0
    for file, weight in sources.files:
        num_images = len(file)
        if request.num_images is not None:  # rounded so that the shares add up
            num_images = round(request.num_images * (shared + weight) / total) - round(request.num_images * shared / total)
        shared += weight
        for sample_key, caption in _of_file(request.sampling or Sampling.IN_ORDER, stream, file, num_images):
            yield _pool_sample(request, CAPTIONS_TASK, index, sample_key, caption)
            index += 1


def _of_file(sampling: str, stream: random.Random, file: CaptionFile, num_images: int) -> Iterator[tuple[str, Caption]]:
    for position, line in enumerate(line_numbers(sampling, stream, len(file), num_images)):
        yield keys.pool_sample_key(file.source, *divmod(position, 100_000)), file[line]


def _pool_sample(request: PlanRequest, task: str, index: int, sample_key: str, caption: Caption) -> _Sample:
    return _Sample(task, index, sample_key, caption, keys.hashed_seed(request.seed, sample_key), group=caption.source)


def _pool_sources(request: PlanRequest, manifests: Manifests) -> list[TaskManifest]:
    """Whole datasets, also those that an order cuts into steps: one pool serves any number of steps."""
    if request.order is None:
        return [manifests.task(name) for name in dict.fromkeys(request.datasets or ())]
    order = manifests.order(request.order)
    datasets = {} if request.is_pretraining_only else manifests.datasets_of(order)
    return list(({order.pretraining_source: manifests.task(order.pretraining_source)} | datasets).values())


def _table(request: PlanRequest, samples: Iterator[_Sample]) -> pa.Table:
    """All rows, gathered some at a time: a million samples as Python objects would take three times what the table does.

    In place of its shard each has the group it belongs to, until `_cut` knows how many there are.
    """
    batches = []
    while some := list(islice(samples, _ROWS_AT_ONCE)):
        tasks, indices, sample_keys, captions, seeds, groups = zip(*some, strict=True)
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
            "shard": groups,
            **{name: pa.nulls(len(some)) for name in SINCE_VERSION_2},
        }
        batches.append(pa.record_batch([_array(columns[field.name], field.type) for field in PLAN_SCHEMA], schema=PLAN_SCHEMA))
    return pa.Table.from_batches(batches, schema=PLAN_SCHEMA).combine_chunks()


def _array(values: object, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def _runs(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    """(value, how often) of equal values in a row."""
    encoded = pc.run_end_encode(column.combine_chunks())
    ends = encoded.run_ends.to_pylist()
    return [(value, end - start) for value, start, end in zip(encoded.values.to_pylist(), [0, *ends[:-1]], ends, strict=True)]


def _cut(rows: pa.Table, groups: list[tuple[str, int]], size: int) -> pa.Table:
    """The rows with their shards, of at most `size` images of one group."""
    shards = [keys.shard_id(group, position // size) for group, length in groups for position in range(length)]
    return rows.set_column(PLAN_SCHEMA.get_field_index("shard"), PLAN_SCHEMA.field("shard"), pa.array(shards, pa.string()))


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
    scales = rows["guidance_scale"]
    if pc.min(rows["denoising_steps"]).as_py() < 1 or not pc.all(pc.and_(pc.is_finite(scales), pc.greater_equal(scales, 0))).as_py():
        raise PlanError(f"{where}: denoising steps must be at least 1 and guidance scales at least 0. Make the plan again.")
    _check_sizes(rows, where)


def _check_sizes(rows: pa.Table, where: Path | str) -> None:
    heights, widths = rows["render_height"], rows["render_width"]
    if not heights.is_null().equals(widths.is_null()):
        raise PlanError(f"{where}: render_height and render_width must be given together, or neither.")
    for name, sides in (("render_height", heights.drop_null()), ("render_width", widths.drop_null())):
        possible = pc.and_(pc.greater_equal(sides, SIZE_STEP), pc.less_equal(sides, LONGEST_SIDE))
        wrong = sides.filter(pc.invert(pc.and_(possible, pc.equal(pc.multiply(pc.divide(sides, SIZE_STEP), SIZE_STEP), sides))))
        if len(wrong):
            raise PlanError(f"{where}: {name} must be a multiple of {SIZE_STEP} up to {LONGEST_SIDE} pixels, found {wrong[0].as_py()}.")


def shard_slices(rows: pa.Table) -> list[tuple[str, int, int]]:
    """(shard, first row, number of rows) of every shard in plan order."""
    slices, start = [], 0
    for shard, length in _runs(rows["shard"]):
        slices.append((shard, start, length))
        start += length
    return slices
