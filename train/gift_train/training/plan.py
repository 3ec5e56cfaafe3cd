"""What a run is told to do, before a model or an image is looked at."""

from dataclasses import dataclass

from gift_shared.errors import ConfigError, unknown_name
from gift_shared.file_cache import FileCache
from gift_shared.manifests import LABEL_SPACES, LabelSpace, Manifests, OrderManifest
from gift_shared.storage import Folder, open_folder
from gift_train.data.sources import NoTaskSource
from gift_train.methods.base import Method
from gift_train.methods.method_files import load_method_files
from gift_train.methods.registry import method_class
from gift_train.options import RunOptions, label_spaces
from gift_train.recipes.recipe import Recipe, load_recipe
from gift_train.records.trackers import check_trackers


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

    def steps_of(self, num_images: int) -> int:
        """N of a task that has so many training images. Epochs of a method that trains no weights end with an epoch's last batch.

        Of others one more batch follows, with rate 0; there, it would count.
        """
        steps, looks_only = self.recipe.steps_of(num_images), not method_class(self.recipe.method).trains_weights
        return steps - 1 if looks_only and self.recipe.epochs is not None else steps


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


def uses_shards(plan: RunPlan, method: Method) -> bool:
    return plan.recipe.replay is not None or method.no_task_source() == NoTaskSource.SYNTHETIC
