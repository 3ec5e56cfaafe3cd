"""Recipes: TOML files into frozen dataclasses, every key required and known, cross-field rules checked on load.

`recipes/<benchmark>/<name>.toml` ship with the package; `base = "protocol"` merges another recipe of the same folder
underneath, tables key by key. A recipe of one's own is given by its path.
"""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from gift_shared.documents import is_file_name, read_toml
from gift_shared.errors import ConfigError, unknown_name
from gift_train.data.replay_rule import ReplaySelection
from gift_train.data.score_rules import ScoreRules
from gift_train.data.sources import ReplaySource
from gift_train.methods.registry import method_class
from gift_train.recipes.typed_table import parse_table

_ALTERNATIVES = {"steps": "epochs", "epochs": "steps"}  # one that is set replaces the other of a base
PROTOCOL = "protocol"  # the base of every shipped recipe; not a recipe of its own


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW's own numbers; the learning rate comes from the schedule."""

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is a fraction from 0 to below 1, found {getattr(self, name)}.")
        for name in ("epsilon", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, found {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class ReplayRule:
    """Which synthetic images a task replays: how many, whose captions they may carry, and how well they must show them (see ScoreRules)."""

    num_images: int
    captions: Literal["all", "pretraining-only"]
    max_rank: int | None = None
    top_share: float | None = None
    scores: str | None = None

    def __post_init__(self) -> None:
        _ = self.by_score  # refuses what cannot be

    @property
    def by_score(self) -> ScoreRules:
        """The rules over scores."""
        return ScoreRules(max_rank=self.max_rank, top_share=self.top_share, scores=self.scores)

    def selection(self, seed: int) -> ReplaySelection:
        """The rule of a run with this seed."""
        return ReplaySelection(num_images=self.num_images, captions=self.captions, seed=seed, by_score=self.by_score)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's numbers, but the order, the seed, the model and the shards.

    steps: N of the schedule; a task makes N + 1 updates, the last with learning rate 0 (METHODS 1.7). epochs: instead, N is that of
    so many passes over a task's training images.
    batch_size, replay_batch_size: images of one step, of all processes that share it. evaluation_batch_size: of one forward pass.
    learning_rate: peak, per optimizer update; `learning_rates` overrides it by dataset.
    reseed: "each-task" starts every task from the same random state, as the reference does (A5); "once" lets it run on.
    log_every, checkpoint_every: in steps; they change no number.
    checkpoint_minutes: the state is saved besides when so much time has passed since the last time; it changes no number.
    diagnostics: note what a report shows beside the numbers (RUN/diagnostics); changes no number, costs a pass over the
    synthetic images a task.
    """

    title: str
    method: str
    warmup_steps: int
    batch_size: int
    replay_batch_size: int
    evaluation_batch_size: int
    label_smoothing: float
    learning_rate: float
    learning_rates: dict[str, float]
    optimizer: OptimizerSettings
    precision: Literal["fp32", "tf32", "bf16"]
    reseed: Literal["each-task", "once"]
    log_every: int
    checkpoint_every: int
    method_config: Any  # the method's own Config
    steps: int | None = None
    epochs: int | None = None
    checkpoint_minutes: float | None = None
    replay: ReplayRule | None = None
    diagnostics: bool = True

    def peak_rate(self, dataset: str) -> float:
        """Peak learning rate of a dataset."""
        return self.learning_rates.get(dataset, self.learning_rate)

    def steps_of(self, num_images: int) -> int:
        """N of a task that has so many training images; the last batch of an epoch may be a small one."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * -(-num_images // self.batch_size)

    def as_table(self) -> dict[str, Any]:
        """Plain values for run.json."""
        return dataclasses.asdict(self)


def benchmarks() -> list[str]:
    """Names of the folders of shipped recipes."""
    return sorted(path.parent.name for path in _shipped().glob(f"*/{PROTOCOL}.toml"))


def recipe_methods(benchmark: str) -> dict[str, str]:
    """Which method each shipped recipe of a benchmark runs."""
    folder = _shipped() / benchmark
    return {name: _read_with_base(folder / f"{name}.toml", folder, depth=0)["method"] for name in recipe_names(benchmark)}


def recipe_names(benchmark: str) -> list[str]:
    """Names of the shipped recipes of a benchmark, e.g. of `mini`. Raises ConfigError if there is no such benchmark."""
    folder = _shipped() / benchmark
    if not folder.is_dir():
        raise ConfigError(unknown_name("benchmark", benchmark, benchmarks()))
    return sorted(path.stem for path in folder.glob("*.toml") if path.stem != PROTOCOL)


def load_recipe(name: str, benchmark: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or one's own by a path that ends in .toml.

    Args:
        benchmark: the folder of shipped recipes, from the order's manifest.
        overrides: `key=value` pairs of `--set`, dotted for tables, values in TOML; for trials.
    Raises: ConfigError, naming the file and the key.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if name not in recipe_names(benchmark):
            raise ConfigError(unknown_name("recipe", name, recipe_names(benchmark)))
        path = _shipped() / benchmark / f"{name}.toml"
    table = _read_with_base(path, _shipped() / benchmark, depth=0)
    for override in overrides:
        _apply_override(table, override)
    return parse_recipe(table, f"{' '.join(f'--set {override}' for override in overrides)} over {path}" if overrides else str(path))


def parse_recipe(table: Mapping[str, Any], where: str) -> Recipe:
    """A merged table into a Recipe; `where` stands in the messages."""
    if not isinstance(table.get("method"), str):
        raise ConfigError(f"{where}: the key 'method' is missing; it names the continual-learning method.")
    method = method_class(table["method"])
    settings = parse_table(method.Config, table.get("method_config", {}), f"{where} [method_config]")
    rest = {key: value for key, value in table.items() if key != "method_config"}
    recipe = parse_table(Recipe, rest, where, given={"method_config": settings})
    if (recipe.replay is not None) != (method(settings).replay_source() == ReplaySource.SYNTHETIC):
        needs = "needs a [replay] table" if recipe.replay is None else "replays no synthetic images; remove the [replay] table"
        raise ConfigError(f"{where}: method {recipe.method!r} {needs}.")
    _check(recipe, where)
    return recipe


def _check(recipe: Recipe, where: str) -> None:
    if (recipe.steps is None) == (recipe.epochs is None):
        raise ConfigError(f"{where}: give steps or epochs, one of the two.")
    if recipe.epochs is not None and recipe.epochs < 1:
        raise ConfigError(f"{where}: epochs must be at least 1, found {recipe.epochs}.")
    if recipe.steps is not None and not 0 <= recipe.warmup_steps < recipe.steps:
        raise ConfigError(f"{where}: warmup_steps must be from 0 to below steps = {recipe.steps}, found {recipe.warmup_steps}.")
    if recipe.warmup_steps < 0:  # an epoch may be shorter than the warmup, as it is in the published class-incremental runs
        raise ConfigError(f"{where}: warmup_steps must be 0 or more, found {recipe.warmup_steps}.")
    for key in ("batch_size", "replay_batch_size", "evaluation_batch_size", "log_every", "checkpoint_every"):
        if getattr(recipe, key) < 1:
            raise ConfigError(f"{where}: {key} must be at least 1, found {getattr(recipe, key)}.")
    if recipe.checkpoint_minutes is not None and recipe.checkpoint_minutes <= 0:
        raise ConfigError(f"{where}: checkpoint_minutes must be above 0, found {recipe.checkpoint_minutes}. Leave it out for none.")
    if not 0 <= recipe.label_smoothing < 1:
        raise ConfigError(f"{where}: label_smoothing is a fraction from 0 to below 1, found {recipe.label_smoothing}.")
    for name, rate in (("learning_rate", recipe.learning_rate), *recipe.learning_rates.items()):
        if rate <= 0:
            raise ConfigError(f"{where}: the learning rate {name!r} must be positive, found {rate}.")


def _shipped() -> Path:
    return Path(str(resources.files("gift_train.recipes")))


def _read_with_base(path: Path, shipped: Path, depth: int) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"No recipe at {path}: there is no such file.")
    table = read_toml(path, ConfigError)
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str) or not is_file_name(base):
        raise ConfigError(f"{path}: base must be the name of a recipe beside it or of the same benchmark, found {base!r}.")
    candidates = [folder / f"{base}.toml" for folder in (path.parent, shipped)]
    found = next((candidate for candidate in candidates if candidate.is_file() and candidate != path), None)
    if found is None or depth > 8:
        raise ConfigError(f"{path}: base = {base!r} was not found beside it nor in {shipped}, or the bases form a circle.")
    return _merge(_read_with_base(found, shipped, depth + 1), table)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in below.items() if _ALTERNATIVES.get(key) not in above}
    for key, value in above.items():
        both_tables = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if both_tables else value
    return merged


def _apply_override(table: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r} should read key=value, e.g. method_config.distill_weight=2.0.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text  # a bare word is a string: --set method_config.teacher=initial
    *path, last = key.split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a table.")
    table.pop(_ALTERNATIVES.get(key, ""), None)
    table[last] = value
