"""Everything checked before a run: names, files, counts, folders, and that all ranks read the same. No work is spent here."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset

from gift_shared.errors import ConfigError, unknown_name
from gift_shared.file_cache import FileCache
from gift_shared.manifests import LABEL_SPACES, LabelSpace, Manifests, OrderManifest
from gift_shared.parquet_files import write_index
from gift_shared.shards import require_images
from gift_shared.storage import Folder, RemoteFolder, index_file, open_folder
from gift_train.clip.compiler import require_compiler
from gift_train.clip.description import MINI, decided_by_flag
from gift_train.clip.load import load_backbone
from gift_train.clip.model import Backbone, fingerprint
from gift_train.clip.model_config import OPENAI_PREPROCESSING
from gift_train.clip.model_folder import CONFIG_FILE
from gift_train.data.datasets.images import Selected
from gift_train.data.few_shot import FewShot, write_few_shot
from gift_train.data.loader import Loading, resolved_loading
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
from gift_train.data.tasks import Task, load_tasks
from gift_train.data.transforms import ImageTransforms, image_transforms
from gift_train.distributed import Ranks
from gift_train.evaluation.beside import Beside, BesideListing, list_beside
from gift_train.evaluation.spellings import warn_of_spellings
from gift_train.methods.base import Method
from gift_train.methods.consolidation import Weights
from gift_train.methods.method_files import is_plain_clip, load_method_files, method_code
from gift_train.methods.registry import method_class
from gift_train.options import RunOptions, is_quick_gelu, label_spaces
from gift_train.recipes.recipe import Recipe, load_recipe
from gift_train.records.checkpoint import checksum, seed_everything
from gift_train.records.files import RUN_FILE, read_record
from gift_train.records.identity import manifests_digest, tasks_digest
from gift_train.records.reading import Reading
from gift_train.records.run_folder import RunFolder, check_place
from gift_train.records.trackers import check_trackers
from gift_train.training.preemption import PreemptionCheck
from gift_train.training.step_losses import Losses, compiled_losses

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run is told to do, its names looked up and its recipe checked. Nothing of it needs a model or an image."""

    options: RunOptions
    manifests: Manifests
    order: OrderManifest
    recipe: Recipe
    shards: Folder | None

    @property
    def label_spaces(self) -> tuple[LabelSpace, ...]:
        """Those that every evaluation answers: the order's own, and those asked for beside it."""
        own, asked = self.order.label_space, label_spaces(self.options.label_space)
        return (own, *(space for space in LABEL_SPACES if space in asked and space != own))


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """The plan with all it works on. Nothing in here trains: method and student stand beside it, so that tasks may hold on to it."""

    plan: RunPlan
    tasks: Mapping[str, Task]
    transforms: ImageTransforms
    replay_rows: Mapping[str, pa.Table]  # by task; empty unless the method replays synthetic images
    initial_weights: Weights
    beside: Beside  # what is evaluated and is no task
    no_task_images: Dataset[Any] | None
    reference_images: Dataset[Any] | None  # those replayed, see ReplaySource
    reference_texts: ReferenceTexts | None
    loading: Loading
    ranks: Ranks
    preemption: PreemptionCheck

    @property
    def num_updates(self) -> list[int]:
        """Of each task: N + 1, see Recipe."""
        return [self.plan.recipe.steps_of(len(self.tasks[name].train)) + 1 for name in self.plan.order.tasks]

    def reading(self, student: Backbone) -> Reading:
        """How the run reads the weights it hands on."""
        options, recipe, order = self.plan.options, self.plan.recipe, self.plan.options.order
        return Reading(
            model=student.name,
            pretrained=options.pretrained,
            method=recipe.method,
            method_config=recipe.as_table()["method_config"],
            num_tasks=len(self.plan.order.tasks),
            precision=recipe.precision,
            evaluation_batch_size=recipe.evaluation_batch_size,
            order=os.path.abspath(order) if Path(order).is_file() else order,
            tokens=fingerprint(student),
            method_code=_code_record(recipe.method),
            is_plain_clip=is_plain_clip(method_class(recipe.method)),
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that can begin: what it works on, who learns and how, and where it is recorded. `compiled`: see Training."""

    setup: RunSetup
    method: Method
    student: Backbone
    folder: RunFolder
    compiled: Losses | None


def plan_run(options: RunOptions) -> RunPlan:
    """Look up what the options name. Raises GiftError of the kind that fits; a misspelt method is told as such."""
    load_method_files(options.method_files)
    if options.method is not None:
        method_class(options.method)
    check_trackers(options.tracker or ())
    manifests = Manifests(tuple(options.manifests or ()))
    order = manifests.order(options.order)
    recipe = load_recipe(options.recipe_argument, order.recipes, options.recipe_overrides)
    known = manifests.names("tasks")
    for dataset in recipe.learning_rates:
        if dataset not in known:
            raise ConfigError("[learning_rates] " + unknown_name("dataset", dataset, known))
    shards = None if options.shards is None else open_folder(options.shards, FileCache(options.shard_cache, options.shard_cache_gb))
    return RunPlan(options=options, manifests=manifests, order=order, recipe=recipe, shards=shards)


def prepare(options: RunOptions, preemption: PreemptionCheck, ranks: Ranks) -> Run:
    """Check all a run depends on and open its folder; no work is spent yet."""
    plan = plan_run(options)
    method = method_class(plan.recipe.method)(plan.recipe.method_config)
    _check_shares(plan.recipe, method, ranks)
    _check_mixture(method)
    _pin_shards(plan, method)
    replay_rows = _select_replay(plan, method, preemption)
    _warn_of_single_classes(plan)
    warn_of_spellings(plan.manifests.tasks_of(plan.order), plan.label_spaces)
    require_reference_images(method.replay_source(), options.reference_images)
    pretraining = plan.manifests.task(plan.order.pretraining_source)
    texts = reference_texts(method.text_source(), options.reference_captions, pretraining)
    beside = list_beside(options, plan.manifests, plan.order.tasks)
    identity = _identity(plan, method, texts) | _identity_beside(beside)
    if ranks.is_main:
        check_place(options.out, identity)
    student = _load_student(plan, method, ranks)
    loading = resolved_loading(options.num_workers, options.worker_start_method, student.device, ranks.num_cores)
    identity["initial_weights"] = _weights_digest(options, student)
    transforms = image_transforms(student.image_settings[0], student.resize_settings)
    identity["transform"] = transforms.evaluation.name
    tasks = _load_tasks(plan, transforms)
    loaded = beside.load(options.data_root, transforms, student, options.image_cache_bytes)
    if plan.recipe.steps is None:
        identity["task_steps"] = [plan.recipe.steps_of(len(task.train)) for task in tasks.values()]
    identity["images"] = {name: task.listing_digest() for name, task in tasks.items()}
    identity["images"] |= {name: images.listing_digest() for name, (_, images) in loaded.datasets.items()}
    _warn_of_long_texts(student, tasks, replay_rows, texts)
    reference, outside = _images_beside_the_tasks(plan, method, transforms)
    for images in (reference, outside):
        if isinstance(images, ReferenceImages) and options.reference_images is not None:
            identity["reference_images_sha256"] = images.digest(options.reference_images)
    method.prepare(student, len(plan.order.tasks))
    setup = RunSetup(
        plan=plan,
        tasks=tasks,
        transforms=transforms,
        replay_rows=replay_rows,
        beside=loaded,
        initial_weights={name: weight.cpu() for name, weight in student.weights_copy().items()},
        no_task_images=outside,
        reference_images=reference,
        reference_texts=texts,
        loading=loading,
        ranks=ranks,
        preemption=preemption,
    )
    compiled = compiled_losses(method, student, ranks) if options.compiles_step and method.trains else None
    return Run(setup=setup, method=method, student=student, folder=_open_folder(setup, identity), compiled=compiled)


def require_same_run(run: Run) -> None:
    """Ranks may stand on different machines: they must have read the same run, and start from the main rank's weights.

    Raises: ConfigError if they have not.
    """
    ranks = run.setup.ranks
    found = ranks.gather_object(run.folder.identity)
    ranks.all_or_none(lambda: _require_one_identity(found))
    ranks.broadcast(run.student.network.state_dict().values())
    ranks.broadcast(run.setup.initial_weights.values())


def _load_student(plan: RunPlan, method: Method, ranks: Ranks) -> Backbone:
    options = plan.options
    seed_everything(options.seed)  # decides the weights of `--pretrained random`, nothing else
    device = options.device if ranks.world_size == 1 else str(ranks.device)
    quick_gelu = is_quick_gelu(options.quick_gelu)
    student = load_backbone(options.model, options.pretrained, device, plan.recipe.precision, quick_gelu, method.check_model)
    if options.compiles or options.compiles_step:
        require_compiler(student.device)
        student.compile_blocks()
    if options.gradient_checkpointing:
        student.recompute_blocks()
    student.micro_batch_size = options.micro_batch_size
    return student


def _load_tasks(plan: RunPlan, transforms: ImageTransforms) -> dict[str, Task]:
    options, order = plan.options, plan.order
    manifests = list(plan.manifests.tasks_of(order).values())
    shots_of = {}
    if order.shots is not None:
        shots_of = {name: FewShot(order.shots, options.seed, name in order.fewer_shots) for name in order.datasets}
    return load_tasks(manifests, options.data_root, transforms, options.image_cache_bytes, shots_of)


def _warn_of_single_classes(plan: RunPlan) -> None:
    alone = [name for name, task in plan.manifests.tasks_of(plan.order).items() if len(task.class_names) == 1]
    if alone:
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        _log.warning("%s%s has one class, so its loss, which is over its own classes, is 0: it teaches nothing.", alone[0], more)


def _images_beside_the_tasks(plan: RunPlan, method: Method, transforms: ImageTransforms) -> tuple[Dataset[Any] | None, Dataset[Any] | None]:
    """Those that are replayed from --reference-images, and those that stand for no task; None where the method wants none."""
    options = plan.options
    reference = reference_replay(
        method.replay_source(), options.reference_images, method.num_reference_images(), options.seed, transforms.evaluation
    )
    outside = no_task_images(
        method.no_task_source(), options.reference_images, plan.shards, plan.order.pretraining_source, transforms.train
    )
    return reference, outside


def _open_folder(setup: RunSetup, identity: Mapping[str, Any]) -> RunFolder:
    """The run's folder, with the rows that each task replays in it, and its training images if they are few of many."""
    options, ranks = setup.plan.options, setup.ranks
    resolved = {"num_workers": setup.loading.num_workers, "worker_start_method": setup.loading.start_method}
    told = {name: _plain(value) for name, value in (dataclasses.asdict(options) | resolved).items()}
    folder = RunFolder(options.out, identity, ranks, options=told, trackers=options.tracker or ())
    if setup.plan.shards is not None and ranks.is_main:
        for name, rows in setup.replay_rows.items():
            write_index(folder.replay / f"{name}.parquet", rows, {"shards": str(setup.plan.shards)})
    for name, task in setup.tasks.items():
        if isinstance(task.train.source, Selected) and setup.plan.order.shots is not None and ranks.is_main:
            write_few_shot(folder.few_shot / f"{name}.json", task.manifest, task.train.source)
    return folder


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


def _check_mixture(method: Method) -> None:
    if method.mixture() is not None and method.replay_source() != ReplaySource.NONE:
        raise ConfigError(f"Method {method.name!r} learns all tasks at once and replays images: nothing comes before that it could replay.")


def _require_one_identity(found: Sequence[Mapping[str, Any]]) -> None:
    for rank, identity in enumerate(found):
        for key, value in identity.items():
            if value != found[0][key]:
                raise ConfigError(f"{key} is {value!r} for process {rank}, {found[0][key]!r} for process 0. Give all the same files.")


def _uses_shards(plan: RunPlan, method: Method) -> bool:
    return plan.recipe.replay is not None or method.no_task_source() == NoTaskSource.SYNTHETIC


def _pin_shards(plan: RunPlan, method: Method) -> None:
    """A run that goes on reads the shards it began with, also where a branch of the hub has moved since."""
    if isinstance(plan.shards, RemoteFolder) and _uses_shards(plan, method):
        out = plan.options.out
        begun = read_record(out).get("shards") if (out / RUN_FILE).is_file() else None
        plan.shards.pin(None if begun is None else begun["path"])


def _select_replay(plan: RunPlan, method: Method, preemption: PreemptionCheck) -> dict[str, pa.Table]:
    if method.replay_source() != ReplaySource.SYNTHETIC:
        return {}
    if plan.shards is None:
        raise ConfigError(f"Method {plan.recipe.method!r} replays synthetic images: give their output folder with --shards.")
    assert plan.recipe.replay is not None
    rule = ReplaySelection(num_images=plan.recipe.replay.num_images, captions=plan.recipe.replay.captions, seed=plan.options.seed)
    rows = select_replay(plan.shards, plan.order, rule)
    require_images(plan.shards, rows.values(), lambda: preemption.check_alone("its shards, then all of the run"))
    return rows


def _warn_of_long_texts(
    student: Backbone, tasks: Mapping[str, Task], replay_rows: Mapping[str, pa.Table], texts: ReferenceTexts | None
) -> None:
    manifests = [task.manifest for task in tasks.values()]
    found = list(dict.fromkeys(text for manifest in manifests for text in (*manifest.prompts, *manifest.first_template_captions)))
    found += [caption for rows in replay_rows.values() for caption in rows["caption"].unique().to_pylist()]
    student.warn_of_long(found + ([] if texts is None else list(texts.sentences)))


def _weights_digest(options: RunOptions, student: Backbone) -> str | None:
    """Of the weights that were loaded, None for random ones, which the seed decides; and of what files say of them beside their shapes."""
    if options.pretrained == "random":
        return None
    return checksum(_configuration(options, student), student.network.state_dict())


def _configuration(options: RunOptions, student: Backbone) -> str:
    """What decides features beside the weights, where neither a name nor a tag does. Older runs noted that of folders alone."""
    described = Path(options.model, CONFIG_FILE)
    if described.is_file():
        return described.read_text(encoding="utf-8")
    preprocess_cfg, is_file = student.config["preprocess_cfg"], options.pretrained is not None and Path(options.pretrained).is_file()
    is_usual = all(preprocess_cfg[key] == OPENAI_PREPROCESSING[key] for key in ("mean", "std"))
    if (options.pretrained is None and options.model != MINI) or (is_file and not is_usual):
        return json.dumps(student.config, sort_keys=True)
    return ""


def _identity(plan: RunPlan, method: Method, texts: ReferenceTexts | None) -> dict[str, Any]:
    """What makes two runs the same run; the rest of run.json is circumstance."""
    options, recipe, shards = plan.options, plan.recipe, None
    if plan.shards is not None and _uses_shards(plan, method):
        index_sha256 = hashlib.sha256(index_file(plan.shards).read_bytes()).hexdigest()
        shards = {"path": str(plan.shards), "index_sha256": index_sha256}
    return {
        "recipe_name": Path(options.recipe_argument).name.removesuffix(".toml"),
        "recipe": recipe.as_table(),
        "method_code": _code_record(recipe.method),
        "overrides": options.recipe_overrides,
        "order": plan.order.name,
        "datasets": list(plan.order.tasks),
        "shots": plan.order.shots,
        "label_spaces": list(plan.label_spaces),
        "seed": options.seed,
        "model": options.model,
        "pretrained": options.pretrained,
        # Told by nothing that is loaded: a flag alone decides it. Where a file says so too, its digest does.
        "quick_gelu": decided_by_flag(options.model, options.pretrained, options.quick_gelu),
        "shards": shards,
        "reference_images": None if options.reference_images is None else str(options.reference_images),
        "reference_captions": None if texts is None else texts.record,
        "manifests_sha256": manifests_digest(plan.manifests, plan.order),
    }


def _code_record(method: str) -> dict[str, str] | None:
    """Of a method that is not ours."""
    code = method_code(method)
    return None if code is None else dataclasses.asdict(code)


def _identity_beside(listing: BesideListing) -> dict[str, Any]:
    """Nothing for a run that evaluates its tasks alone, as the records of before have it."""
    identity: dict[str, Any] = {}
    if listing.manifests:
        identity |= {"also_evaluate": list(listing.manifests), "also_manifests_sha256": tasks_digest(listing.manifests.values())}
    if listing.pairs:
        identity |= {"retrieval": {pairs.name: pairs.digest() for pairs in listing.pairs}}
    return identity


def _plain(value: Any) -> Any:
    """A path as JSON holds it; lists of them too."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
