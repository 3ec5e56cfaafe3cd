"""Which options of a plan go together: told before a file is read."""

from collections.abc import Collection

from gift_generate.planning.plan_request import PlanRequest, Sampling, Seeding, check_numbers
from gift_shared import keys
from gift_shared.errors import ConfigError
from gift_shared.options import flag_of
from gift_shared.schema import PlanKind

MOST_IMAGES_PER_TASK = 1_000_000  # keys have six digits and must sort by index
_OF_SHARDS = {"images_per_shard", "workers", "minutes_per_shard"}
_OF_ALL_KINDS = _OF_SHARDS | {"kind", "seed", "guidance_scale", "denoising_steps"}
_OF_CAPTIONS = _OF_ALL_KINDS | {"num_images", "caption_files", "caption_column", "sampling", "drops_repeats"}
_OF_FILES = {"caption_column", "sampling", "drops_repeats"}
_BESIDE_CLASS_NAMES = {"order", "datasets", "images_per_task", "images_per_class", "class_counts", "draws_per_task", "is_pretraining_only"}


def plan_kind(request: PlanRequest) -> PlanKind:
    """The kind that is asked for, or that follows from what is: captions where nothing says how class names would take part."""
    if request.table is not None:
        return PlanKind.TABLE
    if request.kind is not None:
        return PlanKind(request.kind)
    is_captions_alone = request.caption_files and not _BESIDE_CLASS_NAMES.intersection(request.given())
    return PlanKind.CAPTIONS if is_captions_alone else PlanKind.PER_TASK


def takes_order(request: PlanRequest) -> bool:
    """Whether the plan is made for an order or datasets."""
    return plan_kind(request) in (PlanKind.PER_TASK, PlanKind.POOL)


def check_request(request: PlanRequest) -> None:
    """Raises ConfigError for options that do not go together, and for numbers that are not possible."""
    kind = plan_kind(request)
    if kind is PlanKind.TABLE:
        _refuse_others(request, _OF_ALL_KINDS - {"kind"} | {"table"}, "with --from, whose rows say it")
    elif kind is PlanKind.CAPTIONS:
        _check_captions(request)
    else:
        _check_class_names(request, kind)
    if not request.caption_files and (given := _OF_FILES.intersection(request.given())):
        raise ConfigError(f"{flag_of(PlanRequest, min(given))} is for caption files: give --caption-file.")
    check_numbers(request)
    if request.draws_per_task is not None and request.images_per_task is not None and request.draws_per_task < request.images_per_task:
        raise ConfigError(f"--draws-per-task {request.draws_per_task} is less than --images-per-task {request.images_per_task}.")
    most = keys.POSITION_SEED_STRIDE if request.seeding == Seeding.PUBLISHED else MOST_IMAGES_PER_TASK
    if max(request.images_per_task or 0, request.images_per_class or 0) > most:
        raise ConfigError(f"At most {most} images a task or class with --seeding {request.seeding}: beyond it keys or seeds would repeat.")


def refuse_shard_size(request: PlanRequest) -> None:
    """Raises ConfigError if a shard size is chosen for rows that say their shards."""
    _refuse_others(request, set(request.given()) - _OF_SHARDS, "to a table with a column shard")


def _check_captions(request: PlanRequest) -> None:
    _refuse_others(request, _OF_CAPTIONS, "in a plan of captions alone (--kind captions)")
    if not request.caption_files:
        raise ConfigError("A plan of captions alone needs --caption-file.")
    if request.num_images is None and any(file.weight != 1 for file in request.caption_files):
        raise ConfigError("Weights of caption files share out a number of images: give --images, or leave the weights out.")
    if request.num_images is None and request.sampling == Sampling.REPLACEMENT:
        raise ConfigError("--sampling replacement draws a number of images: give --images.")


def _check_class_names(request: PlanRequest, kind: PlanKind) -> None:
    is_pool = kind is PlanKind.POOL
    wanted, other = ("images_per_class", "images_per_task") if is_pool else ("images_per_task", "images_per_class")
    is_counted = is_pool and request.class_counts is not None
    if (getattr(request, wanted) is None and not is_counted) or getattr(request, other) is not None:
        raise ConfigError(f"A {kind} plan needs --{wanted.replace('_', '-')} and not --{other.replace('_', '-')}.")
    if request.class_counts is not None and not is_pool:
        raise ConfigError("--class-counts are counts of a pool: a per-task plan draws its class names (--kind pool).")
    if request.num_images is not None:
        raise ConfigError(f"--images is for captions alone (--kind captions): a {kind} plan has --{wanted.replace('_', '-')}.")
    if (request.order is None) == (not request.datasets):
        raise ConfigError("A plan is made for an --order, or (kind pool only) for one or more --dataset: give one of the two.")
    if not is_pool and request.order is None:
        raise ConfigError("A per-task plan needs an --order: which classes a task is replayed with follows from the tasks before it.")
    if is_pool and request.seeding == Seeding.PUBLISHED:
        raise ConfigError("--seeding published is the rule of per-task plans: a pool has no task positions.")
    if is_pool and (request.draws_per_task is not None or request.class_name_weight == 0):
        raise ConfigError("A pool has n images for every class name: --draws-per-task and a class-name weight of 0 do not apply.")


def _refuse_others(request: PlanRequest, allowed: Collection[str], where: str) -> None:
    others = [name for name in request.given() if name not in allowed]
    if others:
        raise ConfigError(f"{flag_of(PlanRequest, others[0])} does not apply {where}. Leave it out.")
