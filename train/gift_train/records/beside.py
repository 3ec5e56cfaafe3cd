"""What a run keeps of the datasets and pairs beside its order: in accuracy_matrix.json, and in short in summary.json.

"also":      {"datasets": [...], "zero_shot": [...], "matrix": [[...]]}, percent, a row a task
"retrieval": {NAME: {"zero_shot": RECALLS, "after": [RECALLS, ...]}}; RECALLS: percent by direction and k, see evaluation/retrieval.py
"""

from collections.abc import Mapping
from typing import Any

from gift_train.evaluation.beside import BesideScores


def begin_beside(accuracies: dict[str, Any], found: BesideScores) -> None:
    """Note what was found before the first task."""
    if found.also:
        accuracies["also"] = {"datasets": list(found.also), "zero_shot": list(found.also.values()), "matrix": []}
    if found.retrieval:
        accuracies["retrieval"] = {name: {"zero_shot": recalls, "after": []} for name, recalls in found.retrieval.items()}


def add_beside(accuracies: dict[str, Any], found: BesideScores | None) -> None:
    """Note what was found after one more task; None: what was found before, since the weights are those."""
    also = accuracies.get("also")
    if also is not None:
        before = (also["matrix"] or [also["zero_shot"]])[-1]
        also["matrix"].append(before if found is None else [found.also[name] for name in also["datasets"]])
    for name, one in accuracies.get("retrieval", {}).items():
        before = (one["after"] or [one["zero_shot"]])[-1]
        one["after"].append(before if found is None else found.retrieval[name])


def beside_summary(accuracies: Mapping[str, Any]) -> dict[str, Any]:
    """The first and the last values, for the summary of a finished run; nothing where nothing was evaluated beside its order."""
    summary: dict[str, Any] = {}
    if (also := accuracies.get("also")) is not None:
        columns = zip(also["datasets"], also["zero_shot"], also["matrix"][-1], strict=True)
        summary["also"] = {name: {"zero_shot": zero_shot, "last": last} for name, zero_shot, last in columns}
    if retrieval := accuracies.get("retrieval"):
        summary["retrieval"] = {name: {"zero_shot": one["zero_shot"], "last": one["after"][-1]} for name, one in retrieval.items()}
    return summary
