"""What a published table holds, read from `gift_manifests/published/tables/<name>.toml`: its rows, their recipes, the printed numbers.

One file serves every world: a row names a recipe, and the order decides from which benchmark's folder it is taken.
"""

import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from gift_shared.errors import ManifestError, unknown_name
from gift_train.recipes.typed_table import parse_table


@dataclass(frozen=True, kw_only=True)
class Published:
    """A printed row, percent."""

    transfer: float
    avg: float
    last: float


PUBLISHED_METRICS = tuple(field.name for field in fields(Published))


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row: what it is called in print, the recipe that computes it (a name, or a .toml file), and its numbers where they are printed.

    shards: label of the set of shards it trains on; None = the plain set.
    about, doubtful: ids of notes, about the row and about single metrics of `published`.
    """

    label: str
    recipe: str
    shards: str | None = None
    published: Published | None = None
    about: str | None = None
    doubtful: dict[str, str] | None = None

    @property
    def recipe_name(self) -> str:
        """As runs record it: of a file its name without .toml."""
        return Path(self.recipe).name.removesuffix(".toml")


@dataclass(frozen=True, kw_only=True)
class Note:
    """What is odd about a published number."""

    about: str
    verdict: str
    text: str


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A published table. `heading` names what its rows are. `orders`: by world, the order of tasks it is run on."""

    name: str
    title: str
    heading: str
    source: str
    setting: str | None
    orders: dict[str, str]
    rows: tuple[TableRow, ...]
    notes: dict[str, Note]  # those that the rows refer to

    @property
    def shard_labels(self) -> list[str]:
        """Labels of the sets of shards beside the plain one."""
        return list(dict.fromkeys(row.shards for row in self.rows if row.shards is not None))

    @property
    def recipes(self) -> list[str]:
        """Names of the rows' recipes, each once."""
        return list(dict.fromkeys(row.recipe for row in self.rows))


def table_names() -> list[str]:
    """Names of the published tables."""
    return sorted(path.stem for path in (_published() / "tables").glob("*.toml"))


def load_table(name: str) -> PaperTable:
    """A published table by name, or one's own by a path that ends in .toml. Raises ManifestError."""
    path = Path(name)
    if path.suffix != ".toml":
        if name not in table_names():
            raise ManifestError(unknown_name("table", name, table_names()))
        path = _published() / "tables" / f"{name}.toml"
    notes = {key: parse_table(Note, value, f"note {key}") for key, value in _read(_published() / "notes.toml").items()}
    return _parse(_read(path), path, notes)


def _parse(table: dict[str, Any], path: Path, notes: dict[str, Note]) -> PaperTable:
    known = {"title": str, "heading": str, "source": str, "setting": str, "orders": dict, "row": list}
    for key, value in table.items():
        if key not in known:
            raise ManifestError(f"{path}: " + unknown_name("key", key, known))
        if not isinstance(value, known[key]):
            raise ManifestError(f"{path}: {key!r} must be a {known[key].__name__}, found {value!r}.")
    for key in known.keys() - {"setting"}:
        if not table.get(key):
            raise ManifestError(f"{path}: the key {key!r} is missing or empty.")
    rows = tuple(parse_table(TableRow, row, f"{path} [[row]] {place}") for place, row in enumerate(table["row"], start=1))
    used = [note for row in rows for note in (row.about, *(row.doubtful or {}).values()) if note is not None]
    for note in used:
        if note not in notes:
            raise ManifestError(f"{path}: " + unknown_name("note", note, notes))
    for row in rows:
        for metric in row.doubtful or {}:
            if metric not in PUBLISHED_METRICS:
                raise ManifestError(f"{path}, row {row.label!r}: " + unknown_name("metric", metric, PUBLISHED_METRICS))
    return PaperTable(
        name=path.stem,
        title=table["title"],
        heading=table["heading"],
        source=table["source"],
        setting=table.get("setting"),
        orders=table["orders"],
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
