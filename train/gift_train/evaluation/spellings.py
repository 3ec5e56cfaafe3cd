"""Class names of several tasks that may mean one class, though they are not spelled alike. No torch here."""

import logging
import re
from collections.abc import Mapping, Sequence

from gift_shared.manifests import LabelSpace, TaskManifest, as_read

MOST_SHOWN = 5
_log = logging.getLogger(__name__)


def warn_of_spellings(order: Mapping[str, TaskManifest], spaces: Sequence[LabelSpace]) -> None:
    """Tell, where labels are looked for among classes of several tasks, which class names may be one class and count as two."""
    if set(spaces) == {"known"}:
        return
    found = spelled_differently(order)
    if found:
        shown = "; ".join(" and ".join(f"{name!r} ({', '.join(tasks)})" for name, tasks in names.items()) for names in found[:MOST_SHOWN])
        more = f"; and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        _log.warning(
            "Tasks spell what may be one class differently, and one spelling is taken for an error where the other is right: %s%s. Spell "
            "them alike in the manifests if they are one class.",
            shown,
            more,
        )


def spelled_differently(order: Mapping[str, TaskManifest]) -> list[dict[str, list[str]]]:
    """Names that differ by blanks, punctuation or a plural and stand in different datasets: for each such class, its names and their tasks.

    Two names of one dataset are two classes, whatever steps it is cut into.
    """
    datasets = {task: manifest.dataset.name for task, manifest in order.items()}
    by_key: dict[str, dict[str, list[str]]] = {}
    for task, manifest in order.items():
        for name in dict.fromkeys(map(as_read, manifest.class_names)):
            by_key.setdefault(_key(name), {}).setdefault(name, []).append(task)
    return [
        names for names in by_key.values() if len(names) > 1 and len({datasets[task] for tasks in names.values() for task in tasks}) > 1
    ]


def _key(name: str) -> str:
    """What stays of a name without blanks, punctuation and the end that an English plural changes; never empty."""
    letters = re.sub(r"[\W_]+", "", name) or name
    if letters.endswith("s") and not letters.endswith(("ss", "us", "is")):
        letters = letters[:-1] or letters
    stem = letters.removesuffix("e") or letters
    return stem[:-1] + "i" if stem.endswith("y") else stem
