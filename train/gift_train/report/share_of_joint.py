"""Which share of the way from finetune to joint a method goes: (method - finetune) / (joint - finetune).

0 is plain finetuning, 1 all tasks learned at once. Means are over those seeds that all three have, so that the seeds' luck is the same.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gift_train.report.grid import Grid
from gift_train.report.runs import Run

LOWER, UPPER = "finetune", "joint"
METRICS = {"avg": "Avg.", "last": "Last"}  # Transfer has no upper bound here: joint has seen every task
TITLE = "Share of the way from finetune to joint"


@dataclass(frozen=True)
class Share:
    """One method on one order, over `seeds`. Fractions; None where joint is not above finetune."""

    order: str
    recipe: str
    seeds: tuple[int, ...]
    avg: float | None
    last: float | None


def shares_of_joint(runs: Sequence[Run]) -> list[Share]:
    """Of every recipe that has a seed with both bounds on its order, in the order in which they are first met."""
    by_recipe: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        by_recipe.setdefault((run.order, run.recipe), {})[int(run.summary["seed"])] = run
    shares = []
    for (order, recipe), own in by_recipe.items():
        lower, upper = (by_recipe.get((order, bound), {}) for bound in (LOWER, UPPER))
        seeds = tuple(seed for seed in own if seed in lower and seed in upper)
        if recipe in (LOWER, UPPER) or not seeds:
            continue
        found = {name: _share(*(_mean(runs_of, seeds, name) for runs_of in (lower, own, upper))) for name in METRICS}
        shares.append(Share(order=order, recipe=recipe, seeds=seeds, **found))
    return shares


def share_grid(shares: Sequence[Share]) -> Grid:
    """As a table of text, in percent."""
    several = len({share.order for share in shares}) > 1
    lines = []
    for share in shares:
        name = f"{share.recipe} ({share.order})" if several else share.recipe
        lines.append([name, *(share_text(value) for value in (share.avg, share.last)), str(len(share.seeds))])
    return Grid([TITLE, *METRICS.values(), "seeds"], lines)


def share_csv(shares: Sequence[Share]) -> str:
    """Full precision, as fractions."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["order", "recipe", "seeds", *METRICS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(share) | {"seeds": " ".join(map(str, share.seeds))} for share in shares)
    return buffer.getvalue()


def share_records(shares: Sequence[Share]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [asdict(share) | {"seeds": list(share.seeds)} for share in shares]


def share_text(share: float | None) -> str:
    """A fraction in percent."""
    return "-" if share is None else f"{100 * share:.0f} %"


def _mean(runs: dict[int, Run], seeds: Sequence[int], metric: str) -> float:
    return float(np.mean([runs[seed].summary[metric] for seed in seeds]))


def _share(lower: float, own: float, upper: float) -> float | None:
    return (own - lower) / (upper - lower) if upper > lower else None
