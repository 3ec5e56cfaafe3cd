"""`gift-train table`: what is shown, run, printed and written."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from gift_shared.atomic import write_text
from gift_shared.errors import ConfigError, unknown_name
from gift_shared.file_cache import FileCache
from gift_shared.manifests import Manifests
from gift_shared.storage import Folder, open_folder
from gift_train.methods.method_files import load_method_files
from gift_train.methods.registry import method_names
from gift_train.options import RunOptions, TableOptions
from gift_train.records.identity import manifests_digest
from gift_train.report.grid import Grid, grid_text
from gift_train.report.paper_tables.comparison import compare, comparison_csv, comparison_latex, comparison_markdown, comparison_text
from gift_train.report.paper_tables.definition import PaperTable, load_table
from gift_train.report.paper_tables.needed_runs import NeededRun, RunState, TableSetting, needed_runs, replay_shortage
from gift_train.report.paper_tables.running import require_possible, run_missing, run_options

DEFAULT_MODELS = {"mtil": ("ViT-B-16", "openai"), "cil": ("ViT-B-16", "openai"), "mini": ("mini", None)}  # by benchmark: model, pretrained


def table_command(name: str, options: TableOptions, *, run: bool, tell: Callable[[str], None]) -> str:
    """Tell which runs are there, make the others if `run`, write the table; returns it as text. `tell` prints progress."""
    table, setting = _resolve(name, options)
    seeds = parse_seeds(options.seeds)
    needed = needed_runs(table, setting, seeds)
    tell(_listing(table, setting, needed))
    if run:
        for _ in run_missing(_chosen(table, needed, options.only or ()), setting, tell):
            _write(table, setting, needed_runs(table, setting, seeds))  # an interrupted table shows what it has
    else:
        num_left = sum(one.state is not RunState.THERE for one in needed)
        if num_left:
            tell(f"{num_left} runs are not there: --run makes them here, --commands prints them as jobs of their own.")
    return _write(table, setting, needed_runs(table, setting, seeds))


def missing_commands(name: str, options: TableOptions) -> str:
    """One `gift-train run` a line for every run that is not there."""
    missing, setting = _missing(name, options)
    return "\n".join(shlex.join(run_options(one, setting).command_line()) for one in missing)


def missing_runs(name: str, options: TableOptions) -> list[RunOptions]:
    """Every run that is not there. Raises ConfigError if one of them cannot be made, as far as it can be told now."""
    missing, setting = _missing(name, options)
    require_possible(missing, setting)
    return [run_options(one, setting) for one in missing]


def _missing(name: str, options: TableOptions) -> tuple[list[NeededRun], TableSetting]:
    table, setting = _resolve(name, options)
    needed = _chosen(table, needed_runs(table, setting, parse_seeds(options.seeds)), options.only or ())
    return [one for one in needed if one.state is not RunState.THERE], setting


def parse_seeds(text: str) -> list[int]:
    """`1,2,3` as numbers. Raises ConfigError for anything else, and for a seed given twice."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 20 for part in parts) or len(set(parts)) != len(parts):
        raise ConfigError(f"--seeds {text!r} should be different whole numbers below 10^19 with commas between them, e.g. 1,2,3.")
    return [int(part) for part in parts]


def parse_shards(given: Sequence[str], table: PaperTable, cache: FileCache | None = None) -> dict[str | None, Folder]:
    """`FOLDER` (or a URL) for the plain set, `LABEL=FOLDER` for another. Raises ConfigError for an unknown or repeated label."""
    shards: dict[str | None, Folder] = {}
    for value in given:
        head, separator, tail = value.partition("=")
        is_labelled = separator and "://" not in head and not Path(value).exists()
        label, folder = (head, tail) if is_labelled else (None, value)
        if label is not None and label not in table.shard_labels:
            raise ConfigError(f"--shards {value}: " + unknown_name("label", label, table.shard_labels))
        if label in shards:
            raise ConfigError(f"--shards {value}: {label or 'the plain set'} is given twice. A second set needs a label: LABEL=FOLDER.")
        shards[label] = open_folder(folder, cache)
    return shards


def parse_reference_images(given: Sequence[str]) -> dict[str | None, Path]:
    """`FOLDER` for every method, `METHOD=FOLDER` for one. Raises ConfigError for an unknown or repeated method."""
    folders: dict[str | None, Path] = {}
    for value in given:
        head, separator, tail = value.partition("=")
        method, folder = (head, tail) if separator and not Path(value).exists() else (None, value)
        if method is not None and method not in (known := method_names()):
            raise ConfigError(f"--reference-images {value}: " + unknown_name("method", method, known))
        if method in folders:
            raise ConfigError(f"--reference-images {value}: given twice. Images of one method: METHOD=FOLDER.")
        folders[method] = Path(folder)
    return folders


def _resolve(name: str, options: TableOptions) -> tuple[PaperTable, TableSetting]:
    load_method_files(options.method_files)
    table = load_table(name)
    if options.order is None and options.world not in table.orders:
        raise ConfigError(unknown_name("world", options.world, table.orders))
    argument = options.order or table.orders[options.world]
    lookup = Manifests(tuple(options.manifests or ()))
    order = lookup.order(argument)
    if len(order.tasks) < 2:
        raise ConfigError(f"Order {order.name!r} has one task, and Transfer needs two. `gift-train report` shows such runs.")
    model, pretrained = options.model, options.pretrained
    if model is None:
        if order.recipes not in DEFAULT_MODELS:
            raise ConfigError(f"Order {order.name!r} is of benchmark {order.recipes!r}, which has no model of its own: give --model.")
        model, default_tag = DEFAULT_MODELS[order.recipes]
        pretrained = pretrained or default_tag
    setting = TableSetting(
        options=options,
        order=order,
        order_argument=argument,
        manifests_sha256=manifests_digest(lookup, order),
        model=model,
        pretrained=pretrained,
        shards=parse_shards(options.shards or (), table, FileCache(options.shard_cache, options.shard_cache_gb)),
        reference_images=parse_reference_images(options.reference_images or ()),
    )
    return table, setting


def _chosen(table: PaperTable, needed: Sequence[NeededRun], only: Sequence[str]) -> list[NeededRun]:
    for recipe in only:
        if recipe not in table.recipes:
            raise ConfigError("--only: " + unknown_name("recipe", recipe, table.recipes))
    return [one for one in needed if not only or one.recipe_name in only]


def _listing(table: PaperTable, setting: TableSetting, needed: Sequence[NeededRun]) -> str:
    counts = {state: sum(one.state is state for one in needed) for state in RunState}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines = []
    for one in needed:
        shortage = replay_shortage(one, setting)
        remarks = [one.remark] if one.remark else []
        remarks += [f"{shortage[0]} of {shortage[1]} images a task"] if shortage else []
        lines.append([one.row.label, one.name, str(one.state), str(one.folder), "; ".join(remarks)])
    grid = grid_text(Grid(["row", "run", "state", "folder", ""], lines))
    return f"Table {table.name} on order {setting.order.name} needs {len(needed)} runs: {told}.\n{grid}"


def _write(table: PaperTable, setting: TableSetting, needed: Sequence[NeededRun]) -> str:
    """Write the table in every form, unless none of its runs is there; returns the text."""
    comparison = compare(table, setting, needed)
    text = comparison_text(comparison)
    if any(result.runs for result in comparison.rows):
        folder = setting.options.out or setting.options.runs / setting.order.name / "tables"
        forms = {"txt": text, "md": comparison_markdown(comparison), "tex": comparison_latex(comparison)}
        for suffix, content in forms.items():
            write_text(folder / f"{table.name}.{suffix}", content + "\n")
        write_text(folder / f"{table.name}.csv", comparison_csv(comparison))
    return text
