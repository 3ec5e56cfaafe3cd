"""gift-train export: a run's weights into a folder, whole or not at all, and to the hub if asked."""

import filecmp
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gift_shared.atomic import TEMPORARY_SUFFIX, temporary_for, writer_of
from gift_shared.cards import CARD_FILE, is_untouched
from gift_shared.errors import ConfigError
from gift_train.clip.forms import WEIGHTS_FILE, Forms, write_forms
from gift_train.clip.model_folder import CONFIG_FILE
from gift_train.export.model_card import model_card
from gift_train.export.selection import RunResult, select_result
from gift_train.records.restore import Asked, restore

Tell = Callable[[str], None]
# Names that such a folder may have, on the hub too.
MODEL_FILES = (
    "open_clip_*", "config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json", "tokenizer*", "vocab.*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.*", "*.model", "*.gz",
)  # fmt: skip
DECIDED_BY_THEM = (CONFIG_FILE, "config.json", CARD_FILE)  # without which neither library takes a folder for a model


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is exported and where to. model: where the run's model lies now, None: where it lay. hub_name: the repository it goes to."""

    run: Path
    to: Path
    task: str | None = None
    model: str | None = None
    hub_name: str | None = None


def export(request: ExportRequest, tell: Tell) -> Forms:
    """Write the folder; one that holds these weights already is brought up to date. Raises ConfigError, DataError."""
    result = select_result(request.run, request.task)
    to = Path(os.path.abspath(request.to))
    _require_place(to)
    student = restore(result.checkpoint, Asked(model=request.model, device="cpu")).student
    staged = _new_folder_beside(to)
    try:
        forms = write_forms(student, staged, request.hub_name or to.name)
        (staged / CARD_FILE).write_text(model_card(result, forms, staged, request.hub_name), encoding="utf-8")
        _put_in_place(staged, to, tell)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    _tell_of_forms(result, request.to, forms, tell)
    return forms


def _tell_of_forms(result: RunResult, to: Path, forms: Forms, tell: Tell) -> None:
    what = f"{to}: {result.run.name} after {result.task} ({result.task_index + 1} of {len(result.datasets)})"
    if forms.why_not_transformers is None:
        tell(f"{what}, for open_clip and transformers")
    else:
        tell(f"{what}, for open_clip; transformers has no CLIPModel for it: {forms.why_not_transformers}")


def _require_place(to: Path) -> None:
    """Before a model is loaded. Raises ConfigError for a folder of something else."""
    if to.exists() and not to.is_dir():
        raise ConfigError(f"--to {to} is a file; expected a folder that is new, empty or an earlier export.")
    if to.is_dir() and _content(to) and not (to / WEIGHTS_FILE).is_file():
        raise ConfigError(f"--to {to} holds something else ({min(_content(to))}). Choose another folder.")


def _new_folder_beside(to: Path) -> Path:
    """A temporary one on the same storage; those that killed exports left are removed."""
    for left in to.parent.glob(f".{to.name}.*{TEMPORARY_SUFFIX}"):
        writer = writer_of(left)
        if writer is not None and writer.is_gone():
            shutil.rmtree(left, ignore_errors=True)
    staged = temporary_for(to)
    staged.mkdir(parents=True)
    return staged


def _put_in_place(staged: Path, to: Path, tell: Tell) -> None:
    """The finished folder under its name at once; where the same weights lie, the files beside them that differ."""
    _sync(staged)
    if not to.is_dir() or not _content(to):
        if to.is_dir():
            to.rmdir()
        staged.rename(to)
        return
    if not filecmp.cmp(staged / WEIGHTS_FILE, to / WEIGHTS_FILE, shallow=False):
        raise ConfigError(f"--to {to} holds other weights: another run's, or after another task. Choose another folder.")
    if foreign := sorted(_content(to) - _content(staged)):
        raise ConfigError(f"--to {to} holds a file that is not of this export ({foreign[0]}). Choose another folder.")
    if (to / CARD_FILE).is_file() and not is_untouched((to / CARD_FILE).read_bytes()):
        tell(f"{to / CARD_FILE} was changed, so it stays; without it, the same command writes it anew.")
        (staged / CARD_FILE).unlink()
    for name in sorted(_content(staged), key=lambda name: name in DECIDED_BY_THEM):
        (staged / name).replace(to / name)


def _content(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
