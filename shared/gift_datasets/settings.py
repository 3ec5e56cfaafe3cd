"""The `[data]` table of a task manifest, checked key by key. Which keys there are depends on `kind`."""

import re
from dataclasses import dataclass
from typing import Any

from gift_shared.errors import ManifestError, unknown_name
from gift_shared.keys import composed
from gift_shared.manifests import TaskManifest

_COMMON_KEYS: dict[str, type] = {"kind": str, "split": dict, "get": str, "look_for": str}
_KEYS: dict[str, dict[str, type]] = {
    "image_folder": {"train": str, "test": str, "all": str, "class_folders": list},
    "webdataset": {"train": str, "test": str, "all": str},
    "torchvision": {
        "class": str,
        "root": str,
        "train_args": dict,
        "test_args": dict,
        "all_args": dict,
        "class_folders": list,
        "check_names": bool,
        "download": bool,
    },
}
_SEEDED_KEYS = {"train_fraction": float, "seed": int}
_SPLIT_KEYS = _SEEDED_KEYS | {"test_files": list}


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Cut one shuffled list in two: the first int(train_fraction * N) of torch's permutation from `seed` are for training.

    Or by a list, of an image folder: `test_files` are for testing, paths below the folder.
    """

    train_fraction: float = 0.0
    seed: int = 0
    test_files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where a task's images are. `parts` maps "train" and "test", or "all" with a split, to a path, tar pattern or arguments."""

    kind: str
    parts: dict[str, Any]
    split: SplitRule | None = None
    class_folders: tuple[str, ...] | None = None  # what the data calls its classes, in label order, where it is not the class name
    torchvision_class: str = ""
    root: str = ""
    check_names: bool = True
    download: bool = False
    look_for: str = ""  # a path under the data root that exists once the data are there
    get: str = ""  # how to get the data, for people


def data_settings(manifest: TaskManifest) -> DataSettings:
    """Check the manifest's `[data]` table. Raises ManifestError naming the key at fault."""
    data = manifest.data
    if data is None:
        raise ManifestError(f"{manifest.name} has no [data] table, so its class names are known, its images are not. Add [data].")
    kind = data["kind"]
    _check_types(manifest, "[data]", data, _COMMON_KEYS | _KEYS[kind])
    if kind == "torchvision" and "class" not in data:
        raise ManifestError(f"{manifest.name}: [data] of kind torchvision needs class, the name of a class of torchvision.datasets.")
    split = _split_rule(manifest, kind, data.get("split"))
    suffix = "_args" if kind == "torchvision" else ""
    wanted = ("all",) if split else ("train", "test")
    parts = {part: _with_slashes(data[part + suffix]) for part in ("train", "test", "all") if part + suffix in data}
    if set(parts) - set(wanted):
        stray = min(set(parts) - set(wanted)) + suffix
        raise ManifestError(f"{manifest.name}: [data] {stray} does not go {'with' if split else 'without'} a [data.split] table.")
    if not parts:
        raise ManifestError(f"{manifest.name}: [data] must give {' and '.join(part + suffix for part in wanted)}.")
    folders = data.get("class_folders")
    return DataSettings(
        kind=kind,
        parts=parts,
        split=split,
        class_folders=tuple(composed(str(folder)) for folder in folders) if folders else None,
        torchvision_class=data.get("class", ""),
        root=_with_slashes(data.get("root", "")),
        check_names=data.get("check_names", True),
        download=data.get("download", False),
        look_for=_with_slashes(data.get("look_for", "")),
        get=data.get("get", ""),
    )


def _with_slashes(place: Any) -> Any:
    """A path as this system reads it: manifests written on Windows have backslashes. One before a brace escapes it in a tar pattern."""
    return re.sub(r"\\(?![{},])", "/", place) if isinstance(place, str) else place


def _split_rule(manifest: TaskManifest, kind: str, table: dict[str, Any] | None) -> SplitRule | None:
    if table is None:
        return None
    _check_types(manifest, "[data.split]", table, _SPLIT_KEYS)
    if table.keys() == {"test_files"}:
        if kind != "image_folder" or not table["test_files"] or not all(isinstance(name, str) for name in table["test_files"]):
            raise ManifestError(f"{manifest.name}: [data.split] test_files is a list of paths below the folder of kind image_folder.")
        return SplitRule(test_files=tuple(composed(_with_slashes(name)) for name in table["test_files"]))
    if table.keys() != _SEEDED_KEYS.keys() or not 0 < table["train_fraction"] < 1:
        raise ManifestError(f"{manifest.name}: [data.split] needs train_fraction between 0 and 1, and seed; or test_files alone.")
    return SplitRule(**table)


def _check_types(manifest: TaskManifest, where: str, table: dict[str, Any], types: dict[str, type]) -> None:
    for key, value in table.items():
        if key not in types:
            raise ManifestError(f"{manifest.name} {where}: " + unknown_name("key", key, types))
        if not isinstance(value, types[key]):
            raise ManifestError(f"{manifest.name} {where}: {key} must be of type {types[key].__name__}, found {value!r}.")
