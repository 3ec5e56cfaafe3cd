"""README.md of an exported model: what it learned and how, its accuracies, and how to load it. For people, and front matter for the hub.

It names nothing of the machine: of a path only the last part.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from gift_shared.cards import code, plain, sealed, table
from gift_train.clip import hub
from gift_train.clip.forms import WEIGHTS_FILE, Forms
from gift_train.evaluation.metrics import metrics_of
from gift_train.export.selection import RunResult
from gift_train.records.accuracies import own_space
from gift_train.records.files import steps_of_tasks

DATASETS = "hf://datasets/"
AMONG = {
    "known": "",
    "union-seen": " among the classes of all tasks learned by then and the dataset's own",
    "union-all": " among the classes of all tasks",
}
TAGS = ("clip", "continual-learning", "gift")
ABOUT = (
    "A CLIP that has learned {num} task{s} one after another with `gift-train` (recipe `{recipe}`), to lose as little as possible of what\n"
    "it knew before. The pipeline is that of GIFT (CVPR 2025, arXiv 2503.04229)."
)
WITH_OPEN_CLIP = """```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("{name}")
tokenizer = open_clip.get_tokenizer("{name}")
```"""
WITH_TRANSFORMERS = """```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("{name}")
processor = CLIPProcessor.from_pretrained("{name}")
```"""


def model_card(result: RunResult, forms: Forms, folder: Path, hub_name: str | None) -> str:
    """The card of an exported folder. `hub_name`: the repository it goes to; a folder is named as `FOLDER`."""
    front = yaml.safe_dump(_front_matter(result, forms), sort_keys=False, allow_unicode=True, width=1000)
    title = f"{_model_name(result.record)} after {result.task} ({result.record['recipe_name']})"
    number = result.task_index + 1
    sections = [
        f"# {plain(title)}",
        ABOUT.format(num=number, s="s" * (number != 1), recipe=result.record["recipe_name"]),
        "## How to load it\n\n" + _how_to_load(forms, hub_name),
        "## Accuracy\n\n" + _accuracy(result),
        "## How it was made\n\n" + _facts(result, folder),
    ]
    return sealed(f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n\n", "gift-train")


def _front_matter(result: RunResult, forms: Forms) -> dict[str, Any]:
    record, shards = result.record, _shards_path(result.record)
    base = hub.origin(str(record.get("model") or ""), record.get("pretrained"))
    facts: dict[str, Any] = {
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": [*TAGS, *(["transformers"] if forms.why_not_transformers is None else [])],
    }
    if base is not None:
        facts |= {"base_model": base, "base_model_relation": "finetune"}
    if shards.startswith(DATASETS):
        facts["datasets"] = [shards.removeprefix(DATASETS).partition("@")[0]]
    return facts


def _how_to_load(forms: Forms, hub_name: str | None) -> str:
    blocks = [WITH_OPEN_CLIP.format(name=f"hf-hub:{hub_name}" if hub_name else "local-dir:FOLDER")]
    if forms.why_not_transformers is None:
        blocks.append(WITH_TRANSFORMERS.format(name=hub_name or "FOLDER"))
    else:
        blocks.append(f"transformers has no CLIPModel for it: {forms.why_not_transformers}.")
    return "\n\n".join(blocks)


def _accuracy(result: RunResult) -> str:
    """Percent after each task so far on every dataset, and the metrics of a whole order."""
    matrix, names = result.matrix, result.datasets
    if result.accuracies is None or result.accuracies["zero_shot"] is None:
        return "Not evaluated yet."
    rows = [("before the first task", *_percent(result.accuracies["zero_shot"]))]
    rows += [(f"after {name}", *_percent(row)) for name, row in zip(names, matrix, strict=False)]
    last = "the last row is this model" if len(matrix) > result.task_index else "this model was not evaluated yet"
    told = f"Top-1 in percent, zero-shot classifiers of class names and templates{AMONG[own_space(result.accuracies)]}; {last}."
    shown = f"{told}\n\n{table(('', *map(code, names)), rows)}"
    if len(matrix) < len(names):
        return shown
    metrics = metrics_of(result.accuracies, matrix)
    numbers = [("Transfer", metrics.transfer), ("Avg", metrics.avg), ("Last", metrics.last), ("Forgetting", metrics.forgetting)]
    return f"{shown}\n\n" + table(("", ""), [(name, f"{value:.1f}") for name, value in numbers if value is not None])


def _percent(row: Sequence[float]) -> list[str]:
    return [f"{value:.1f}" for value in row]


def _facts(result: RunResult, folder: Path) -> str:
    record = result.record
    shards = record.get("shards") or {}
    with (folder / WEIGHTS_FILE).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "Began as": code(" ".join(part for part in (_model_name(record), _last_part(str(record.get("pretrained") or ""))) if part)),
        "Method": code(str(record["recipe"]["method"])),
        "Recipe": code(str(record["recipe_name"])),
        "Changed over the recipe": code(", ".join(map(str, record.get("overrides") or ()))),
        "Order of tasks": code(str(record["order"])),
        "Tasks learned": ", ".join(map(code, result.datasets[: result.task_index + 1])),
        "Steps per task": " / ".join(f"{steps:,}" for steps in dict.fromkeys(steps_of_tasks(record))),
        "Seed": str(record["seed"]),
        "Synthetic images": code(_last_part(_shards_path(record)) if shards else ""),
        "sha256 of their index": code(str(shards.get("index_sha256") or "")),
        f"sha256 of `{WEIGHTS_FILE}`": code(weights),
        "Trained with": ", ".join(f"{name} {version}" for name, version in sorted((record.get("versions") or {}).items())),
        "Commit": code(str(record.get("commit") or "")),
        "Exported with": f"gift-cl {importlib.metadata.version('gift-cl')}",
    }
    return table(("", ""), [(name, value) for name, value in facts.items() if value])


def _shards_path(record: Mapping[str, Any]) -> str:
    return str((record.get("shards") or {}).get("path") or "")


def _model_name(record: Mapping[str, Any]) -> str:
    return _last_part(str(record.get("model") or "CLIP")).removeprefix(hub.PREFIX)


def _last_part(text: str) -> str:
    """A URL or a name as it is; of a path its last part, since the rest is of the machine it lies on."""
    if "://" in text or text.startswith(hub.PREFIX) or not ("/" in text or "\\" in text):
        return text
    return PureWindowsPath(text).name
