"""Whether two runs are the same run: one rule for a folder that is opened again and for a table that looks for its runs. No torch here."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from gift_shared.manifests import Manifests, OrderManifest, TaskManifest

# A recipe's name for people and how often it writes: they change no number, so they tell no two runs apart.
INDIFFERENT_KEYS = ("title", "log_every", "checkpoint_every", "checkpoint_minutes", "diagnostics")
# Where something lies tells nothing if the record holds the digest of what lies there.
_PATHS = {
    "shards.path": "shards.index_sha256",
    "shards.scores.clip": "shards.scores.sha256",
    "shards.scores.weights": "shards.scores.sha256",
    "method_code.path": "method_code.sha256",
    "reference_captions.path": "reference_captions.sha256",
    "reference_images": "reference_images_sha256",
}
# Compared only where both sides know them: older records lack them, and some are known only once a model or images are opened.
_DIGESTS = {
    "method_code.sha256": "the text of its method (--method-file, or an installed package)",
    "manifests_sha256": "the manifests (class names, templates, data, counts)",
    "also_manifests_sha256": "the manifests of --also-evaluate (class names, templates, data, counts)",
    "initial_weights": "the initial weights or their configuration (--model, --pretrained)",
    "reference_images_sha256": "the images of --reference-images",
    "shards.scores.sha256": "the scores by which pictures are selected (gift-generate score)",
    "task_steps": "the training images of its tasks, of which epochs are counted,",
}
# What came to be recorded later, and what all runs before did.
_BEFORE = {
    "transform": "bicubic-centre-crop",  # of evaluation and replay; known once a model is opened
    "recipe.method_config.contrastive_loss": "softmax",
    "recipe.method_config.routers": "task",
    "label_spaces": ["known"],  # a table, which looks for its runs, does not ask which others were evaluated beside the order's own
}
_IMAGES = "images."  # keys with the digest of a dataset's images
_PAIRS = "retrieval."  # of image-caption pairs; compared where one side lacks it too


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The first thing in which two records, as JSON holds them, are of different runs; what is not recorded counts as null."""
    old, new = _BEFORE | _compared(there), _compared(here)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or old.get(_PATHS.get(key, "")) is not None:
            continue
        if key in _BEFORE and new.get(key) is None:
            continue
        if key.startswith(_PAIRS):
            return _pairs_differ(key.removeprefix(_PAIRS), old.get(key), new.get(key))
        if key not in _DIGESTS and not key.startswith(_IMAGES):
            return f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
        if old.get(key) is not None and new.get(key) is not None:
            what = _DIGESTS.get(key, f"the images of {key.removeprefix(_IMAGES)} (how many, their names or sizes)")
            return f"{what} are not those it began with"
    return None


def _pairs_differ(name: str, old: str | None, new: str | None) -> str:
    if old is None or new is None:
        return f"it {'evaluates' if new is None else 'does not evaluate'} --retrieval {name}"
    return f"the pairs of --retrieval {name} (how many, their captions, the images' names or sizes) are not those it began with"


def manifests_digest(manifests: Manifests, order: OrderManifest) -> str:
    """SHA-256 of all that the manifests of an order's tasks, and of its pretraining source, tell a run. Raises ManifestError."""
    found = [manifests.task(order.pretraining_source), *manifests.tasks_of(order).values()]
    return tasks_digest(found, *([order.evaluation_templates] if order.evaluation_templates else []))


def tasks_digest(found: Iterable[TaskManifest], *more: Any) -> str:
    """SHA-256 of all that these manifests tell a run, and of what an order tells besides."""
    facts: list[Any] = [[task.name, task.class_names, task.templates, task.data, task.counts] for task in found]
    facts += [[task.name, task.dataset_labels] for task in found if task.part is not None]
    facts += more
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Inner tables as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def _compared(record: Mapping[str, Any]) -> dict[str, Any]:
    compared = {key: value for key, value in flat(record).items() if key not in {f"recipe.{name}" for name in INDIFFERENT_KEYS}}
    if isinstance(compared.get("overrides"), list):
        compared["overrides"] = [one for one in compared["overrides"] if str(one).partition("=")[0] not in INDIFFERENT_KEYS]
    return compared
