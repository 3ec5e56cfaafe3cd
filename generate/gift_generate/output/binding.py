"""Which plan and which settings an output folder holds images of: decided by who begins, and agreed with by who goes on.

A folder without images is not bound: settings that turn out to be wrong before a shard is finished may be replaced, unless a worker
renders with them now. A worker therefore shows itself before it decides, and looks again before it writes a shard.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any

from gift_generate.images.image_source import ImageSource
from gift_generate.output.folder import NO_RECORD, PLAN_SHA256, RECORD, OutputFolder, check_folder, open_output
from gift_generate.rendering.reproducible import settings_digest
from gift_generate.workers.heartbeat import ObservedWorker
from gift_shared.atomic import json_text, write_json, write_once
from gift_shared.documents import read_json_object
from gift_shared.errors import ConfigError
from gift_shared.schema import PLAN_FILE, RENDER_FILE, RETRY_FOLDER

SHAPE: dict[str, Any] = {"settings": {}}
Look = Callable[[], Sequence[ObservedWorker]]


class Bound(Enum):
    """How a worker found the settings of a folder."""

    FIRST = auto()  # there were none
    REPLACED = auto()  # no image had been made with those that were there
    AGREED = auto()


def open_to_fill(path: Path, plan_path: Path | None) -> OutputFolder:
    """Put the plan into a folder, or check that the one it has is the same. Raises ConfigError, PlanError.

    `plan_path` None goes on with the plan that the folder has.
    """
    check_folder(path, plan_path)
    if plan_path is not None and not (path / PLAN_FILE).is_file() and not write_once(path / PLAN_FILE, plan_path.read_bytes()):
        check_folder(path, plan_path)  # another worker was faster, perhaps with another plan
    output = open_output(path)
    output.require_own_plan()
    return output


def adopt_settings(output: OutputFolder, source: ImageSource, *, must_agree: bool = True) -> None:
    """Let the source take over what it leaves open, such as an automatic batch size, from the folder's settings.

    Raises ConfigError if they `must_agree`, do not, and a shard was finished with them: told before anything is written.
    """
    recorded = _recorded_settings(output.path)
    if recorded is None:
        return
    source.adopt(recorded)
    if must_agree and _first_difference(recorded, source.settings) is not None and output.has_shards():
        raise _other_settings(output.path, recorded, source.settings, "holds images made")


def bind_settings(output: OutputFolder, source: ImageSource, look: Look = lambda: ()) -> Bound:
    """Put the settings into a folder, or check that those it has are the same. Raises ConfigError.

    Settings decide bytes and must agree; the machine is recorded. `look` finds the other workers at the folder; this one must be visible
    to them by now. Of two that begin at once with different settings at least one sees the other.
    """
    record = output.path / RENDER_FILE
    bound = {"settings": source.settings, "machine": source.machine, PLAN_SHA256: output.metadata[PLAN_SHA256]}
    if not record.is_file() and write_once(record, json_text(bound).encode()):
        return Bound.FIRST
    recorded = _recorded_settings(output.path) or {}
    source.adopt(recorded)
    if _first_difference(recorded, source.settings) is None:
        return Bound.AGREED
    if output.has_shards():
        raise _other_settings(output.path, recorded, source.settings, "holds images made")
    ours = settings_digest(source.settings)
    others = [worker for worker in look() if worker.is_live and worker.record.settings_sha256 != ours]
    if others:
        raise _other_settings(output.path, recorded, source.settings, f"is filled by {others[0].record.worker} with images made")
    write_json(record, bound | {"settings": source.settings})
    return Bound.REPLACED


def bind_output(path: Path, plan_path: Path | None, source: ImageSource) -> OutputFolder:
    """Plan and settings at once, for who works on the folder alone. Raises ConfigError, PlanError."""
    output = open_to_fill(path, plan_path)
    adopt_settings(output, source)
    bind_settings(output, source)
    return output


def require_bound(output: OutputFolder, settings: dict[str, Any]) -> None:
    """Before a shard is written: the settings it was made with are the folder's still. Raises ConfigError.

    A worker that was silent for so long that it counted as dead may find others in their place.
    """
    recorded = _recorded_settings(output.path) or {}
    if _first_difference(recorded, settings) is not None:
        raise _other_settings(output.path, recorded, settings, "is by now filled with images made")


def require_rendered(path: Path) -> None:
    """Raises ConfigError if nothing was ever made in a folder that could be made again."""
    if not (path / RENDER_FILE).is_file():
        raise ConfigError(f"{path} has no {RENDER_FILE}, so there are no rows that --retry could make again. Render without it first.")


def bind_retry(output: OutputFolder, source: ImageSource) -> int:
    """The number of the retry with these settings: the one it has in the folder, or the next. Raises ConfigError.

    OUT/retries/<number>.json records settings and machine; rows that are made again name the number.
    """
    content = json_text({"settings": source.settings, "machine": source.machine}).encode()
    number = 1
    while not write_once(retry_record(output.path, number), content):
        held = read_json_object(retry_record(output.path, number), SHAPE, ConfigError)["settings"]
        if _first_difference(held, source.settings) is None:
            return number
        number += 1
    return number


def retry_record(out: Path, number: int) -> Path:
    """The file with the settings of a retry."""
    return out / RETRY_FOLDER / f"{number}.json"


def _recorded_settings(path: Path) -> dict[str, Any] | None:
    record = path / RENDER_FILE
    if not record.is_file():
        return None
    settings: dict[str, Any] = read_json_object(record, RECORD, ConfigError, NO_RECORD)["settings"]
    return settings


def _first_difference(recorded: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """A setting that differs, the model first: from another one the other differences follow. One that is missing is null."""
    names = sorted(recorded.keys() | asked.keys(), key=lambda name: (name != "model", name))
    return next((name for name in names if recorded.get(name) != asked.get(name)), None)


def _other_settings(path: Path, recorded: dict[str, Any], asked: dict[str, Any], how: str) -> ConfigError:
    name = _first_difference(recorded, asked) or "settings"
    return ConfigError(
        f"{path} {how} with {name} = {recorded.get(name)!r}, this command says {asked.get(name)!r}. "
        "Give the same settings to go on, or choose another --out."
    )
