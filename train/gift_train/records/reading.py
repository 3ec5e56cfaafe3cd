"""How a run reads the weights it saves: with what model, by which method, in what precision. Each file that hands weights on says it.

So a checkpoint evaluates alone, wherever it was copied to. Those of before say nothing; their run.json does.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gift_shared.documents import Maybe, read_json_object, shape_fault
from gift_shared.errors import DataError

READING_KEY = "gift_reading"  # of a file's metadata
_SHAPE = {
    "model": Maybe(str), "pretrained": Maybe(str), "method": str, "method_config": {}, "num_tasks": int, "precision": str,
    "evaluation_batch_size": int, "order": str, "tokens": Maybe(str), "quick_gelu": Maybe(bool),
    "method_code?": Maybe({"path": str, "sha256": str}), "is_plain_clip?": Maybe(bool),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a run knows of the weights it saves.

    model: as `--model` finds it, with the tokenizer; None for a model that was made by hand. pretrained: what it began with. order: a name,
    or the path of a file. tokens: what its tokenizer makes of a text, see `model.fingerprint`. quick_gelu: as the run's record has it.
    method_code: where a method that is not ours is written, see `MethodCode`. is_plain_clip: whether its weights are read as any CLIP's.
    """

    model: str | None
    pretrained: str | None
    method: str
    method_config: Mapping[str, Any]
    num_tasks: int
    precision: str
    evaluation_batch_size: int
    order: str
    tokens: str | None = None
    quick_gelu: bool | None = None
    method_code: Mapping[str, str] | None = None
    is_plain_clip: bool | None = None

    def as_metadata(self) -> dict[str, str]:
        """For a safetensors file."""
        return {READING_KEY: json.dumps(asdict(self), sort_keys=True)}


def reading_of_file(path: Path) -> Reading | None:
    """What a checkpoint says of itself; None if it is of before, or none of ours. Raises DataError."""
    if not path.is_file():
        raise DataError(f"No checkpoint at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get(READING_KEY)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable safetensors file: {error}. Copy it again, or remove it.") from error
    if told is None:
        return None
    try:
        table = json.loads(told)
        if (fault := shape_fault(table, _SHAPE)) is not None:
            raise ValueError(fault.removeprefix(": "))
        return Reading(**table)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: its metadata {READING_KEY!r} is garbled ({error}). Copy it again, or remove it.") from error


def reading_of_run(path: Path) -> Reading | None:
    """What RUN/run.json says of RUN/checkpoints/<path>; None for a file that lies in no run's folder. Raises DataError."""
    run_file = path.parent.parent / "run.json"
    if path.parent.name != "checkpoints" or not run_file.is_file():
        return None
    record = read_json_object(
        run_file, {"model?": str, "pretrained?": Maybe(str), "quick_gelu?": Maybe(bool)}, DataError, "Restore it from the run."
    )
    try:
        recipe = record["recipe"]
        return Reading(
            model=record.get("model"),
            pretrained=record.get("pretrained"),
            method=str(recipe["method"]),
            method_config=dict(recipe["method_config"]),
            num_tasks=len(record["datasets"]),
            precision=str(recipe.get("precision", "fp32")),
            evaluation_batch_size=int(recipe["evaluation_batch_size"]),
            order=str(record.get("options", {}).get("order", record["order"])),
            quick_gelu=record.get("quick_gelu"),
            method_code=record.get("method_code"),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(f"{run_file} does not tell which method made {path.name} ({error!r}). Restore it from the run.") from error


def reading_of(path: Path) -> Reading | None:
    """What the checkpoint says of itself, else what the record of the run says in whose folder it lies. Raises DataError."""
    return reading_of_file(path) or reading_of_run(path)
