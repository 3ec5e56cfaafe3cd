"""What `gift-train data check` and `data fetch` do: tell whether each dataset is there and as its manifest says, and get it."""

from dataclasses import dataclass
from pathlib import Path

from gift_datasets.images import ImageSource
from gift_datasets.parts import check_count, list_parts, open_parts, parts_of
from gift_datasets.settings import DataSettings, data_settings
from gift_datasets.webdataset_tars import tar_names
from gift_shared.decoding import UNDECODABLE
from gift_shared.errors import DataError, ManifestError
from gift_shared.manifests import TaskManifest
from gift_shared.progress import with_progress
from gift_train.data import contents


@dataclass(frozen=True, kw_only=True)
class DatasetState:
    """The result for one dataset. `problem` is empty if all is well; counts are of what was found, None if it was not listed."""

    manifest: TaskManifest
    found: dict[str, int]
    num_classes: int | None
    problem: str
    looked_in: Path
    notes: tuple[str, ...] = ()  # what is no fault and may still not be meant

    @property
    def word(self) -> str:
        """`ok`, `missing` (nothing is where it was looked for) or `wrong` (there, but not as the manifest says)."""
        if not self.problem:
            return "ok"
        return "wrong" if self.found or self.looked_in.exists() else "missing"


def check_dataset(manifest: TaskManifest, data_root: Path, *, every_image: bool = False) -> DatasetState:
    """List a dataset, compare it with its manifest and look at a sample; with every_image, decode all of it. Does not raise."""
    looked_in = data_root
    sources: dict[str, ImageSource] = {}
    problem, notes = "", tuple[str, ...]()
    try:
        settings = data_settings(manifest)
        looked_in = place(manifest.name, settings, data_root)
        sources = list_parts(manifest, data_root, parts_of(settings))
        for part, source in sources.items():
            check_count(manifest, part, source)
            if every_image:
                _decode_all(f"{manifest.name} {part}", source)
        notes = contents.notes(sources)
    except (DataError, ManifestError) as error:
        problem = str(error)
    return DatasetState(
        manifest=manifest,
        found={part: len(source) for part, source in sources.items()},
        num_classes=len(set().union(*(source.labels.tolist() for source in sources.values()))) if sources else None,
        problem=problem,
        looked_in=looked_in,
        notes=notes,
    )


def state_lines(states: list[DatasetState]) -> list[str]:
    """A table for people, then one line for each problem and each note."""
    width = max(len("dataset"), *(len(state.manifest.name) for state in states))
    lines = [f"{'dataset':<{width}}  {'state':<7}  {'train':>16}  {'test':>16}  {'classes':>11}  looked in"]
    for state in states:
        counts = [_against(state.found.get(part), state.manifest.counts.get(part)) for part in ("train", "test")]
        classes = _against(state.num_classes, len(state.manifest.class_names))
        lines.append(f"{state.manifest.name:<{width}}  {state.word:<7}  {counts[0]:>16}  {counts[1]:>16}  {classes:>11}  {state.looked_in}")
    lines += [state.problem for state in states if state.problem]
    return lines + [f"{state.manifest.name}: {note}" for state in states for note in state.notes]


def place(name: str, settings: DataSettings, data_root: Path) -> Path:
    """Where a dataset is looked for, as far as it can be told without opening it. Raises ManifestError for a broken tar pattern."""
    if settings.kind == "webdataset":
        return data_root / tar_names(name, next(iter(settings.parts.values())))[0]
    if settings.look_for or settings.kind == "torchvision":
        return data_root / (settings.look_for or settings.root)
    return data_root / str(next(iter(settings.parts.values())))


def fetch_dataset(manifest: TaskManifest, data_root: Path) -> None:
    """Let torchvision download a dataset under the data root, then check it. Raises DataError where it cannot be had that way."""
    from gift_datasets.torchvision_class import torchvision_class

    settings = data_settings(manifest)
    if settings.kind != "torchvision" or not settings.download:
        by_hand = settings.get or f"it is of kind {settings.kind}, put it at {place(manifest.name, settings, data_root)}"
        raise DataError(f"{manifest.name} cannot be downloaded: {by_hand.rstrip('.')}.")
    dataset_class = torchvision_class(manifest, settings)
    root = data_root / settings.root
    root.mkdir(parents=True, exist_ok=True)
    try:
        for arguments in settings.parts.values():
            dataset_class(root=str(root), download=True, **arguments)
    except (RuntimeError, *UNDECODABLE) as error:
        raise DataError(f"{manifest.name} could not be downloaded ({error}). Try again, or by hand: {settings.get}.") from error
    open_parts(manifest, data_root, parts_of(settings))


def _decode_all(what: str, source: ImageSource) -> None:
    for index in with_progress(range(len(source)), what, len(source), "image"):
        source.image(index)


def _against(found: int | None, expected: int | None) -> str:
    if found is None:
        return f"- of {expected}" if expected is not None else "-"
    return f"{found} of {expected}" if expected not in (None, found) else str(found)
