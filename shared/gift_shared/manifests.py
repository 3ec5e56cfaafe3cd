"""Facts as files: class names, templates, splits and orders, shipped in `gift_manifests` or in a user's own folder.

A manifest folder holds `tasks/<name>.toml`, `orders/<name>.toml` and `captions/*`. User folders are searched first.
"""

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

from gift_shared.documents import read_toml
from gift_shared.errors import ManifestError, unknown_name
from gift_shared.keys import composed

DATA_KINDS = ("image_folder", "webdataset", "torchvision")

LabelSpace = Literal["known", "union-seen", "union-all"]  # among which classes a test image's label is looked for, see docs/protocols.md
LABEL_SPACES: tuple[LabelSpace, ...] = get_args(LabelSpace)


@dataclass(frozen=True, kw_only=True)
class TaskManifest:
    """One dataset: its classes in label order and the sentences they are put into. Data is optional (ImageNet's names).

    `evaluation_templates`: what an order's evaluation reads in place of `templates`; empty = the same.
    """

    name: str
    display_name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    data: dict[str, Any] | None
    counts: dict[str, int]
    about: str
    repeated_class_names: tuple[str, ...] = ()  # names that two classes share, since the benchmark has them so (ImageNet)
    evaluation_templates: tuple[str, ...] = ()

    @cached_property
    def first_template_captions(self) -> tuple[str, ...]:
        """Training prompts and generation captions, in label order: the first template only (METHODS 1.4)."""
        return tuple(self.templates[0].replace("{}", name) for name in self.class_names)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """What evaluation reads: every template of a class, class after class in label order (METHODS 1.12)."""
        return tuple(template.replace("{}", name) for name in self.class_names for template in self.evaluation_templates or self.templates)


@dataclass(frozen=True)
class JoinedClasses:
    """The classes of several datasets as one list, one dataset after another, each in its own templates."""

    parts: tuple[TaskManifest, ...]

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Of all parts; a name may stand in several."""
        return tuple(name for part in self.parts for name in part.class_names)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where the classes of each part begin."""
        return tuple(accumulate((len(part.class_names) for part in self.parts[:-1]), initial=0))


Classes = TaskManifest | JoinedClasses


@dataclass(frozen=True, kw_only=True)
class OrderManifest:
    """A sequence of tasks, and the class list that stands for pre-training before the first one.

    `shots`: training images a class of each task; None = all there are. `fewer_shots`: tasks of which a class may have fewer, and gives all
    it has. `label_space`: among which classes its evaluation looks for a label. `evaluation_templates`: what evaluation puts class names of
    all tasks into; empty = each dataset's own. Texts of training and captions of generation stay the dataset's.
    """

    name: str
    display_name: str
    pretraining_source: str
    tasks: tuple[str, ...]
    recipes: str  # folder of recipes that belong to this benchmark, e.g. "mtil" or "mini"
    captions_drawn: int | None = None  # captions that a published list draws per task, though fewer images may be made
    shots: int | None = None
    fewer_shots: tuple[str, ...] = ()
    label_space: LabelSpace = "known"
    evaluation_templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifests:
    """Looks manifests up by name in the user's folders, then in the shipped ones. A path ending in .toml is read as it is."""

    user_folders: tuple[Path, ...] = ()
    _shipped: Path = field(default_factory=lambda: Path(str(resources.files("gift_manifests"))))

    def task(self, name: str) -> TaskManifest:
        """Read and check one task manifest. Raises ManifestError."""
        return _parse_task(self._find("tasks", "dataset", name))

    def order(self, name: str) -> OrderManifest:
        """Read and check one order; every task it names must exist. Raises ManifestError."""
        order = _parse_order(self._find("orders", "order", name))
        known = set(self.names("tasks"))
        for task in (order.pretraining_source, *order.tasks):
            if task not in known:
                raise ManifestError(f"Order {order.name!r}: " + unknown_name("dataset", task, known))
        return order

    def tasks_of(self, order: OrderManifest) -> dict[str, TaskManifest]:
        """The tasks of an order by name, as it asks for them: with its templates of evaluation where it has such. Raises ManifestError."""
        return {name: replace(self.task(name), evaluation_templates=order.evaluation_templates) for name in order.tasks}

    def captions_file(self, name: str) -> Path:
        """Captions by path, or by name in `captions/`: a file, a folder or a pattern that files match."""
        for candidate in (Path(name), *(folder / "captions" / name for folder in self._folders())):
            if candidate.exists() or glob.glob(str(candidate), recursive=True):
                return candidate
        raise ManifestError(f"Caption file {name!r} not found; looked in {', '.join(map(str, self._folders()))}.")

    def names(self, kind: str) -> list[str]:
        """Sorted names of all `tasks` or `orders`."""
        return sorted({composed(path.stem) for folder in self._folders() for path in _manifest_files(folder / kind)})

    def _folders(self) -> tuple[Path, ...]:
        return (*self.user_folders, self._shipped)

    def _find(self, kind: str, noun: str, name: str) -> Path:
        if name.endswith(".toml"):
            path = Path(name)
            if path.is_file():
                return path
            raise ManifestError(f"No {noun} manifest at {path}.")
        for folder in self._folders():
            if not folder.is_dir():
                raise ManifestError(f"Manifest folder {folder} does not exist.")
            path = folder / kind / f"{name}.toml"
            if path.is_file() and path.parent == folder / kind:
                return path
            for path in _manifest_files(folder / kind):
                if composed(path.stem) == composed(name):
                    return path
        raise ManifestError(unknown_name(noun, name, self.names(kind)))


def _manifest_files(folder: Path) -> list[Path]:
    """TOML files but those an operating system leaves (`._birds.toml`)."""
    return [path for path in sorted(folder.glob("*.toml")) if not path.name.startswith(".")]


def _parse_task(path: Path) -> TaskManifest:
    table = _read(
        path,
        required={"name": str, "display_name": str, "class_names": list, "templates": list},
        optional={"data": dict, "counts": dict, "about": str, "repeated_class_names": list},
    )
    class_names = _strings(path, "class_names", table["class_names"])
    repeated = tuple(map(str, table.get("repeated_class_names", ())))
    _check_repeated(path, class_names, repeated)
    data = table.get("data")
    if data is not None and data.get("kind") not in DATA_KINDS:
        raise ManifestError(f"{path} [data]: " + unknown_name("kind", str(data.get("kind")), DATA_KINDS))
    return TaskManifest(
        name=_name(path, table),
        display_name=table["display_name"],
        class_names=class_names,
        templates=_templates(path, "templates", table["templates"]),
        data=data,
        counts=_counts(path, table.get("counts", {})),
        about=table.get("about", ""),
        repeated_class_names=repeated,
    )


def _check_repeated(path: Path, class_names: Sequence[str], allowed: Sequence[str]) -> None:
    """Two classes of one name have one prompt, so one of them can never be predicted. CLIP reads neither case nor more than one blank."""
    first: dict[str, int] = {}
    repeated = set()
    for label, name in enumerate(class_names):
        other = first.setdefault(as_read(name), label)
        if other == label:
            continue
        repeated.add(as_read(name))
        if as_read(name) not in map(as_read, allowed):
            raise ManifestError(
                f"{path}: the class names of labels {other} and {label} read alike, {class_names[other]!r} and {name!r}, so that one of "
                "them is never predicted. Rename one, or name it in repeated_class_names if the benchmark has it twice."
            )
    for name in allowed:
        if as_read(name) not in repeated:
            raise ManifestError(f"{path}: repeated_class_names names {name!r}, which does not stand twice in class_names. Remove it.")


def as_read(name: str) -> str:
    """A class name as CLIP reads it: two names that are one as read are one text."""
    return " ".join(composed(name).lower().split())


def _parse_order(path: Path) -> OrderManifest:
    table = _read(
        path,
        required={"name": str, "display_name": str, "pretraining_source": str, "tasks": list, "recipes": str},
        optional={"about": str, "captions_drawn": int, "shots": int, "fewer_shots": list, "label_space": str, "evaluation_templates": list},
    )
    for key in ("captions_drawn", "shots"):
        if table.get(key, 1) < 1:
            raise ManifestError(f"{path}: {key} must be a positive integer, found {table[key]}.")
    if table.get("label_space", LABEL_SPACES[0]) not in LABEL_SPACES:
        raise ManifestError(f"{path}: " + unknown_name("label_space", table["label_space"], LABEL_SPACES))
    tasks = _strings(path, "tasks", table["tasks"])
    if len(set(tasks)) != len(tasks):
        raise ManifestError(f"{path}: a task stands twice in the order.")
    fewer_shots = _strings(path, "fewer_shots", table["fewer_shots"]) if "fewer_shots" in table else ()
    if fewer_shots and "shots" not in table:
        raise ManifestError(f"{path}: fewer_shots means nothing without shots.")
    for task in fewer_shots:
        if task not in tasks:
            raise ManifestError(f"{path}: fewer_shots: " + unknown_name("task", task, tasks))
    evaluation_templates = table.get("evaluation_templates")
    return OrderManifest(
        name=_name(path, table),
        display_name=table["display_name"],
        pretraining_source=table["pretraining_source"],
        tasks=tasks,
        recipes=table["recipes"],
        captions_drawn=table.get("captions_drawn"),
        shots=table.get("shots"),
        fewer_shots=fewer_shots,
        label_space=table.get("label_space", LABEL_SPACES[0]),
        evaluation_templates=() if evaluation_templates is None else _templates(path, "evaluation_templates", evaluation_templates),
    )


def _read(path: Path, *, required: dict[str, type], optional: dict[str, type]) -> dict[str, Any]:
    table = read_toml(path, ManifestError)
    fields = required | optional
    for key, value in table.items():
        if key not in fields:
            raise ManifestError(f"{path}: " + unknown_name("key", key, fields))
        if not isinstance(value, fields[key]):
            raise ManifestError(f"{path}: {key!r} must be a {fields[key].__name__}, found {type(value).__name__}.")
    for key in required:
        if key not in table:
            raise ManifestError(f"{path}: the key {key!r} is missing.")
    return table


def _name(path: Path, table: dict[str, Any]) -> str:
    # The file name is what users type and other manifests refer to; two names for one thing would drift apart.
    if composed(table["name"]) != composed(path.stem):
        raise ManifestError(f"{path}: name = {table['name']!r} must equal the file's name {path.stem!r}.")
    return composed(path.stem)


def _strings(path: Path, key: str, values: Sequence[Any]) -> tuple[str, ...]:
    if not values:
        raise ManifestError(f"{path}: {key!r} is empty.")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise ManifestError(f"{path}: every entry of {key!r} must be a non-empty string, found {value!r}.")
    return tuple(map(composed, values))


def _templates(path: Path, key: str, values: Sequence[Any]) -> tuple[str, ...]:
    templates = _strings(path, key, values)
    for template in templates:
        if template.count("{}") != 1:
            raise ManifestError(f"{path}, {key}: template {template!r} must hold '{{}}' exactly once, the place of the class name.")
    return templates


def _counts(path: Path, counts: dict[str, Any]) -> dict[str, int]:
    for split, count in counts.items():
        if split not in ("train", "test") or not isinstance(count, int) or count < 1:
            raise ManifestError(f"{path} [counts]: expected train and test as positive integers, found {split} = {count!r}.")
    return counts
