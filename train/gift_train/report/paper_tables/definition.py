"""What a table holds, read from `gift_manifests/published/tables/<name>.toml`: its rows, their recipes, the printed numbers.

One file serves every world: a row names a recipe, and the order decides from which benchmark's folder it is taken.
"""

import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from gift_shared.errors import ConfigError, ManifestError, unknown_name
from gift_train.recipes.typed_table import parse_table

PUBLISHED_WORLD = "mtil"  # the world whose numbers are printed


@dataclass(frozen=True, kw_only=True)
class Published:
    """A printed row, percent. None: that number is not printed. Raises ConfigError if none is."""

    transfer: float | None = None
    avg: float | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        if all(value is None for value in vars(self).values()):
            raise ConfigError(f"a printed row has at least one of {', '.join(vars(self))}.")

    def number(self, metric: str) -> float | None:
        """One metric, percent."""
        value: float | None = getattr(self, metric)
        return value


PUBLISHED_METRICS = tuple(field.name for field in fields(Published))


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row: what it is called in print, the recipe that computes it (a name, or a .toml file), and its numbers where they are printed.

    recipe: None for a method that is not here; its row has printed numbers only.
    shards: label of the set of shards it trains on; None = the plain set.
    published: on the order of the world `mtil`; published_on: on other orders, by their names.
    source, about, doubtful: ids of notes: where its numbers were read, if not at the table's source; on the row; on single metrics.
    """

    label: str
    recipe: str | None = None
    shards: str | None = None
    published: Published | None = None
    published_on: dict[str, Published] | None = None
    source: str | None = None
    about: str | None = None
    doubtful: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.recipe is None and self.published is None and self.published_on is None:
            raise ConfigError(f"row {self.label!r} has neither a recipe nor printed numbers.")

    @property
    def notes(self) -> list[str]:
        """Ids of the notes on the row as a whole."""
        return [note for note in (self.source, self.about) if note is not None]

    @property
    def folder_name(self) -> str:
        """What the folders of its runs begin with: the recipe, of a file its name without .toml."""
        assert self.recipe is not None, "a row that is only printed has no runs"
        return Path(self.recipe).name.removesuffix(".toml")


@dataclass(frozen=True, kw_only=True)
class Note:
    """What is odd about a published number, or where it was read. `verdict`: in a word or two, of a source `code` or `secondary note`."""

    about: str
    verdict: str
    text: str


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table. `heading` names what its rows are. `orders`: by world, the order of tasks it is run on. `metrics`: its columns."""

    name: str
    title: str
    heading: str
    source: str
    setting: str | None
    orders: dict[str, str]
    metrics: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: dict[str, Note]  # those that the rows refer to

    @property
    def shard_labels(self) -> list[str]:
        """Labels of the sets of shards beside the plain one."""
        return list(dict.fromkeys(row.shards for row in self.rows if row.shards is not None))

    @property
    def recipes(self) -> list[str]:
        """Names of the rows' recipes, each once."""
        return list(dict.fromkeys(row.recipe for row in self.rows if row.recipe is not None))

    @property
    def printed_orders(self) -> list[str]:
        """Orders that numbers were printed for, the world's first."""
        others = [order for row in self.rows for order in row.published_on or ()]
        return list(dict.fromkeys([*(order for world, order in self.orders.items() if world == PUBLISHED_WORLD), *others]))

    def printed(self, row: TableRow, order: str) -> Published | None:
        """A row's numbers on an order; on one that none were printed for, those that ranks can be compared with."""
        if order != self.orders.get(PUBLISHED_WORLD) and order in self.printed_orders:
            return (row.published_on or {}).get(order)
        return row.published


def table_names() -> list[str]:
    """Names of the shipped tables."""
    return sorted(path.stem for path in (_published() / "tables").glob("*.toml"))


def load_table(name: str) -> PaperTable:
    """A shipped table by name, or one's own by a path that ends in .toml. Raises ManifestError."""
    path = Path(name)
    if path.suffix != ".toml":
        if name not in table_names():
            raise ManifestError(unknown_name("table", name, table_names()))
        path = _published() / "tables" / f"{name}.toml"
    notes = {key: parse_table(Note, value, f"note {key}") for key, value in _read(_published() / "notes.toml").items()}
    return _parse(_read(path), path, notes)


def _parse(table: dict[str, Any], path: Path, notes: dict[str, Note]) -> PaperTable:
    known = {"title": str, "heading": str, "source": str, "setting": str, "orders": dict, "metrics": list, "row": list}
    for key, value in table.items():
        if key not in known:
            raise ManifestError(f"{path}: " + unknown_name("key", key, known))
        if not isinstance(value, known[key]):
            raise ManifestError(f"{path}: {key!r} must be a {known[key].__name__}, found {value!r}.")
    for key in known.keys() - {"setting"}:
        if not table.get(key) and (key in table or key != "metrics"):
            raise ManifestError(f"{path}: the key {key!r} is missing or empty.")
    rows = tuple(parse_table(TableRow, row, f"{path} [[row]] {place}") for place, row in enumerate(table["row"], start=1))
    used = [note for row in rows for note in (*row.notes, *(row.doubtful or {}).values())]
    for note in used:
        if note not in notes:
            raise ManifestError(f"{path}: " + unknown_name("note", note, notes))
    metrics = table.get("metrics", PUBLISHED_METRICS)
    for where, named in [("'metrics'", metrics), *((f"row {row.label!r}", row.doubtful or {}) for row in rows)]:
        for metric in named:
            if metric not in PUBLISHED_METRICS:
                raise ManifestError(f"{path}, {where}: " + unknown_name("metric", str(metric), PUBLISHED_METRICS))
    return PaperTable(
        name=path.stem,
        title=table["title"],
        heading=table["heading"],
        source=table["source"],
        setting=table.get("setting"),
        orders=table["orders"],
        metrics=tuple(metrics),
        rows=rows,
        notes={note: notes[note] for note in dict.fromkeys(used)},
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ManifestError(f"No table at {path}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is not valid TOML: {error}.") from error


def _published() -> Path:
    return Path(str(resources.files("gift_manifests"))) / "published"
