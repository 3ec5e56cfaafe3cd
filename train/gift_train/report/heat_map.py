"""The accuracy matrix as cells with colours: a table first, so that it can be read, copied and walked through with the keys."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from gift_train.report.runs import Run


@dataclass(frozen=True)
class Cell:
    """One accuracy in percent, its colours, and what it says when it is pointed at."""

    text: str
    background: str
    ink: str
    tip: str
    is_learned: bool  # the dataset of this column has just been learned


@dataclass(frozen=True)
class HeatMap:
    """One recipe's matrix, mean over its seeds; the first row is the zero-shot one."""

    recipe: str
    num_seeds: int
    datasets: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def mean_matrix(runs: Sequence[Run]) -> np.ndarray:
    """[1 + T, T] percent: the zero-shot row, then one row after each task; mean over runs."""
    return np.asarray(np.mean([np.vstack([run.zero_shot, run.matrix]) for run in runs], axis=0))


def heat_maps(runs: Sequence[Run]) -> list[HeatMap]:
    """One for each recipe, in the order in which they are met; all share one colour scale, 0 to 100 percent."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.recipe, []).append(run)
    return [_heat_map(recipe, group) for recipe, group in groups.items()]


def _heat_map(recipe: str, runs: list[Run]) -> HeatMap:
    matrix, datasets = mean_matrix(runs), runs[0].datasets
    names = ["zero-shot", *(f"after {name}" for name in datasets)]
    columns = range(len(datasets))
    cells = [[_cell(matrix, row, column, names, datasets) for column in columns] for row in range(len(names))]
    return HeatMap(recipe, len(runs), datasets, list(zip(names, cells, strict=True)))


def _cell(matrix: np.ndarray, row: int, column: int, names: Sequence[str], datasets: Sequence[str]) -> Cell:
    value, zero_shot, learned = matrix[row, column], matrix[0, column], matrix[column + 1, column]
    tip = f"{datasets[column]}, {names[row]}: {value:.2f} %"
    if row:
        tip += f"; {value - zero_shot:+.2f} against zero-shot"
    if row > column + 1:
        tip += f", {value - learned:+.2f} since it was learned"
    colour = matplotlib.colormaps["cividis"](value / 100)
    luminance = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    ink = "#ffffff" if luminance < 0.48 else "#000000"
    return Cell(f"{value:.1f}", to_hex(colour), ink, tip, row == column + 1)
