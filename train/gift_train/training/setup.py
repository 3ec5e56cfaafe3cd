"""What a run is asked for, and everything checked before it: names, files, counts, folders, and that all ranks read the same."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset

from gift_shared.console import some_of
from gift_shared.errors import ConfigError, unknown_name
from gift_shared.manifests import Manifests, OrderManifest
from gift_shared.parquet_files import write_index
from gift_shared.shards import require_images
from gift_shared.storage import Folder, index_file
from gift_train.clip.load import load_backbone
from gift_train.clip.model import Backbone
from gift_train.clip.model_folder import CONFIG_FILE
from gift_train.data.pixel_cache import CACHE_BYTES
from gift_train.data.reference_images import (
    ReferenceImages,
    ReferenceTexts,
    no_task_images,
    reference_replay,
    reference_texts,
    require_reference_images,
)
from gift_train.data.selection import ReplaySelection, select_replay
from gift_train.data.sources import NoTaskSource, ReplaySource
from gift_train.data.tasks import Task, load_task
from gift_train.data.transforms import ImageTransforms, image_transforms
from gift_train.distributed import Ranks
from gift_train.methods.base import Method
from gift_train.methods.consolidation import Weights
from gift_train.methods.registry import method_class
from gift_train.recipes.recipe import Recipe, load_recipe
from gift_train.records.checkpoint import checksum, seed_everything
from gift_train.records.identity import manifests_digest
from gift_train.records.run_folder import RunFolder, check_place
from gift_train.records.run_log import RunLog
from gift_train.records.trackers import Trackers, check_trackers
from gift_train.training.preemption import PreemptionCheck
from gift_train.training.recorder import Record

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What the command line asks for. `stop_after`: leave after so many tasks of the order; the same command goes on."""

    order: str
    recipe: str
    overrides: Sequence[str]
    model: str
    pretrained: str | None
    shards: Folder | None
    data_root: Path
    manifests: Sequence[Path]
    out: Path
    seed: int
    device: str
    num_workers: int
    stop_after: int | None
    reference_images: Path | None = None
    reference_captions: Path | None = None
    trackers: Sequence[str] = ()
    evaluation_cache: Path | None = None
    cache_bytes: int = CACHE_BYTES  # memory for decoded images of each set of images
    compiles: bool = False  # the towers' blocks, see Backbone.compile_blocks


@dataclass(frozen=True, kw_only=True)
class Run:
    """A request whose every name, file and count has been checked."""

    request: RunRequest
    recipe: Recipe
    order: OrderManifest
    tasks: Mapping[str, Task]
    transforms: ImageTransforms
    replay_rows: Mapping[str, pa.Table]  # by task; empty unless the method replays synthetic images
    method: Method
    student: Backbone
    initial_weights: Weights
    record: Record
    no_task_images: Dataset[Any] | None
    reference_images: Dataset[Any] | None  # those replayed, see ReplaySource
    reference_texts: ReferenceTexts | None
    ranks: Ranks

    @property
    def folder(self) -> RunFolder:
        return self.record.folder


def prepare(request: RunRequest, departure: PreemptionCheck, ranks: Ranks) -> Run:
    """Check all a run depends on and open its folder; no work is spent yet."""
    manifests = Manifests(tuple(request.manifests))
    order = manifests.order(request.order)
    recipe = load_recipe(request.recipe, order.recipes, request.overrides)
    _check_request(request, recipe, manifests.names("tasks"))
    method = method_class(recipe.method)(recipe.method_config)
    _check_shares(recipe, method, ranks)
    replay_rows = _select_replay(request, recipe, order, method, departure)
    require_reference_images(method, request.reference_images)
    texts = reference_texts(method.text_source(), request.reference_captions, manifests.task(order.pretraining_source))
    identity = _identity(request, recipe, order, method)
    identity |= {"reference_captions": None if texts is None else texts.record, "manifests_sha256": manifests_digest(manifests, order)}
    if ranks.is_main:
        check_place(request.out, identity)
    seed_everything(request.seed)  # decides the weights of `--pretrained random`, nothing else
    device = request.device if ranks.world_size == 1 else str(ranks.device)
    student = load_backbone(request.model, request.pretrained, device, recipe.precision)
    identity["initial_weights"] = _weights_digest(request, student)
    if request.compiles:
        student.compile_blocks()
    transforms = image_transforms(student.image_settings[0])
    tasks = {name: load_task(manifests.task(name), request.data_root, transforms, request.cache_bytes) for name in order.tasks}
    _warn_of_long_captions(student, tasks, replay_rows, texts)
    reference = reference_replay(method, request.reference_images, request.seed, transforms.evaluation)
    outside = no_task_images(method.no_task_source(), request.reference_images, request.shards, order.pretraining_source, transforms.train)
    for images in (reference, outside):
        if isinstance(images, ReferenceImages) and request.reference_images is not None:
            identity["reference_images_sha256"] = images.digest(request.reference_images)
    method.prepare(student, len(order.tasks))
    folder = RunFolder(request.out, identity, ranks)
    if request.shards is not None and ranks.is_main:
        for name, rows in replay_rows.items():
            write_index(folder.replay / f"{name}.parquet", rows, {"shards": str(request.shards)})
    return Run(
        request=request,
        recipe=recipe,
        order=order,
        tasks=tasks,
        transforms=transforms,
        replay_rows=replay_rows,
        method=method,
        student=student,
        initial_weights={name: weight.cpu() for name, weight in student.weights_copy().items()},
        record=Record(
            folder=folder,
            trackers=Trackers(
                request.trackers if ranks.is_main else (),
                request.out,
                {"recipe": recipe.title, "order": order.name, "seed": request.seed},
            ),
            log=RunLog(request.out, is_writing=ranks.is_main),
            departure=departure,
        ),
        no_task_images=outside,
        reference_images=reference,
        reference_texts=texts,
        ranks=ranks,
    )


def require_same_run(this: Run) -> None:
    """Ranks may stand on different machines: they must have read the same run, and start from the main rank's weights.

    Raises: ConfigError if they have not.
    """
    found = this.ranks.gather_object(this.folder.identity)
    this.ranks.all_or_none(lambda: _require_one_identity(found))
    this.ranks.broadcast(this.student.network.state_dict().values())
    this.ranks.broadcast(this.initial_weights.values())


def _check_request(request: RunRequest, recipe: Recipe, known: Sequence[str]) -> None:
    for dataset in recipe.learning_rates:
        if dataset not in known:
            raise ConfigError("[learning_rates] " + unknown_name("dataset", dataset, known))
    if request.stop_after is not None and request.stop_after < 1:
        raise ConfigError(f"--stop-after counts tasks and must be at least 1, found {request.stop_after}.")
    if not -(2**63) <= request.seed < 2**64:
        raise ConfigError(f"--seed must be a number of 64 bits, from -2^63 to below 2^64, found {request.seed}.")
    check_trackers(request.trackers)


def _check_shares(recipe: Recipe, method: Method, ranks: Ranks) -> None:
    """A batch is shared by all processes; each must get something to do."""
    sizes = {"batch_size": recipe.batch_size}
    if method.replay_source() != ReplaySource.NONE:
        sizes["replay_batch_size"] = recipe.replay_batch_size
    for key, size in sizes.items():
        if method.trains and size < ranks.world_size:
            raise ConfigError(
                f"{ranks.world_size} processes share a batch, but {key} is {size}, which counts the images of all of them."
                f" Start at most {size} processes, or set {key}."
            )


def _require_one_identity(found: Sequence[Mapping[str, Any]]) -> None:
    for rank, identity in enumerate(found):
        for key, value in identity.items():
            if value != found[0][key]:
                raise ConfigError(f"{key} is {value!r} for process {rank}, {found[0][key]!r} for process 0. Give all the same files.")


def _select_replay(
    request: RunRequest, recipe: Recipe, order: OrderManifest, method: Method, departure: PreemptionCheck
) -> dict[str, pa.Table]:
    if method.replay_source() != ReplaySource.SYNTHETIC:
        return {}
    if request.shards is None:
        raise ConfigError(f"Method {recipe.method!r} replays synthetic images: give their output folder with --shards.")
    assert recipe.replay is not None
    rule = ReplaySelection(num_images=recipe.replay.num_images, captions=recipe.replay.captions, seed=request.seed)
    rows = select_replay(request.shards, order, rule)
    require_images(request.shards, rows.values(), lambda: departure.check_alone("its shards, then all of the run"))
    return rows


def _warn_of_long_captions(
    student: Backbone, tasks: Mapping[str, Task], replay_rows: Mapping[str, pa.Table], texts: ReferenceTexts | None
) -> None:
    captions = [caption for task in tasks.values() for caption in task.manifest.first_template_captions]
    captions += [caption for rows in replay_rows.values() for caption in rows["caption"].unique().to_pylist()]
    captions += [] if texts is None else texts.sentences
    long = student.too_long(captions)
    if long:
        _log.warning("%d captions are longer than the model's %d tokens and are cut: %s", len(long), student.context_length, some_of(long))


def _weights_digest(request: RunRequest, student: Backbone) -> str | None:
    """Of the weights that were loaded, None for random ones, which the seed decides; and of a folder's configuration."""
    if request.pretrained == "random":
        return None
    described = Path(request.model, CONFIG_FILE)
    return checksum(described.read_text(encoding="utf-8") if described.is_file() else "", student.network.state_dict())


def _identity(request: RunRequest, recipe: Recipe, order: OrderManifest, method: Method) -> dict[str, Any]:
    """What makes two runs the same run; the rest of run.json is circumstance."""
    shards = None
    if request.shards is not None and (recipe.replay is not None or method.no_task_source() == NoTaskSource.SYNTHETIC):
        index_sha256 = hashlib.sha256(index_file(request.shards).read_bytes()).hexdigest()
        shards = {"path": str(request.shards), "index_sha256": index_sha256}
    return {
        "recipe_name": Path(request.recipe).name.removesuffix(".toml"),
        "recipe": recipe.as_table(),
        "overrides": list(request.overrides),
        "order": order.name,
        "datasets": list(order.tasks),
        "seed": request.seed,
        "model": request.model,
        "pretrained": request.pretrained,
        "shards": shards,
        "reference_images": None if request.reference_images is None else str(request.reference_images),
    }
