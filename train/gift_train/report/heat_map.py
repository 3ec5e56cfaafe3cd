"""The accuracy matrix as cells with colours: a table first, so that it can be read, copied and walked through with the keys."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from gift_shared.manifests import LabelSpace
from gift_train.report.runs import Run, label_spaces

MOST_WITH_DECIMALS = 12  # tasks; the cells of more are narrow and say whole percent


@dataclass(frozen=True)
class Cell:
    """One accuracy in percent, its colours, and what it says when it is pointed at. `text` is empty where it does not count."""

    text: str
    background: str
    ink: str
    tip: str
    is_learned: bool  # the dataset of this column has just been learned
    counts: bool  # False: the protocol does not ask for it


@dataclass(frozen=True)
class HeatMap:
    """One recipe's matrix in one label space, mean over its seeds. rows: the zero-shot one, then by the name of the task learned."""

    recipe: str
    label_space: LabelSpace
    num_seeds: int
    datasets: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def mean_matrix(runs: Sequence[Run], label_space: LabelSpace | None = None) -> np.ndarray:
    """[1 + T, T] percent: the zero-shot row, then one row after each task; mean over runs. label_space: None = each order's own."""
    found = [run.label_spaces[label_space or run.label_space] for run in runs]
    return np.asarray(np.mean([np.vstack([one.zero_shot, one.matrix]) for one in found], axis=0))


def counted(runs: Sequence[Run]) -> np.ndarray:
    """[1 + T, T]: which cells of `mean_matrix` the protocol asks for: class-incremental learning for what was learned, MTIL for all."""
    size = len(runs[0].datasets)
    return (
        np.vstack([np.zeros((1, size), bool), np.tri(size, dtype=bool)])
        if runs[0].is_class_incremental
        else np.ones((size + 1, size), bool)
    )


def heat_maps(runs: Sequence[Run]) -> dict[str, list[HeatMap]]:
    """By recipe, in the order in which they are met, a map for each label space; all share one colour scale, 0 to 100 percent."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.recipe, []).append(run)
    return {recipe: [_heat_map(group, space) for space in label_spaces(group)] for recipe, group in groups.items()}


def _heat_map(runs: list[Run], space: LabelSpace) -> HeatMap:
    group = [run for run in runs if space in run.label_spaces]
    datasets = group[0].datasets
    matrix, counts = mean_matrix(group, space), counted(group)
    names = ["zero-shot", *(f"after {name}" for name in datasets)]
    columns = range(len(datasets))
    cells = [[_cell(matrix, counts, row, column, names, datasets) for column in columns] for row in range(len(names))]
    return HeatMap(group[0].recipe, space, len(group), datasets, list(zip(["zero-shot", *datasets], cells, strict=True)))


def _cell(matrix: np.ndarray, counts: np.ndarray, row: int, column: int, names: Sequence[str], datasets: Sequence[str]) -> Cell:
    value, zero_shot, learned = matrix[row, column], matrix[0, column], matrix[column + 1, column]
    tip = f"{datasets[column]}, {names[row]}: {value:.2f} %"
    if not counts[row, column]:
        return Cell("", "transparent", "inherit", f"{tip}; not learned yet, which this protocol does not count", False, False)
    if row and counts[0, column]:
        tip += f"; {value - zero_shot:+.2f} against zero-shot"
    if row > column + 1:
        tip += f"{',' if counts[0, column] else ';'} {value - learned:+.2f} since it was learned"
    colour = matplotlib.colormaps["cividis"](value / 100)
    luminance = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    ink = "#ffffff" if luminance < 0.48 else "#000000"
    text = f"{value:.1f}" if len(datasets) <= MOST_WITH_DECIMALS else f"{value:.0f}"
    return Cell(text, to_hex(colour), ink, tip, row == column + 1, True)
