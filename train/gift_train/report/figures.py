"""Pictures of runs, drawn with matplotlib: everyone in the field has it, and it writes PNG for slides and SVG for papers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gift_train.report.heat_map import MOST_WITH_DECIMALS, counted, mean_matrix
from gift_train.report.runs import Run
from gift_train.report.series import curves, label, task_length

# Okabe and Ito's palette: distinguishable for the colour-blind; markers carry the same information in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933", "#882255", "#44AA99")
MARKERS = "osD^vPX*<>"
MOST_WITH_NUMBERS = 20  # tasks; numbers in the cells of more could not be read


def save_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Draw every picture that these runs of one order can fill; PNG and SVG each. Returns the PNG paths."""
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "stability_plasticity": _stability_plasticity(runs),
        "forgetting_curves": _forgetting_curves(runs),
        "accuracy_matrices": _accuracy_matrices(runs),
        "training_curves": _training_curves(runs),
    }
    paths = []
    for name, figure in pictures.items():
        if figure is None:
            continue
        figure.savefig(folder / f"{name}.svg", bbox_inches="tight")
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        paths.append(folder / f"{name}.png")
    return paths


def _stability_plasticity(runs: Sequence[Run]) -> Figure | None:
    if any(run.summary["transfer"] is None for run in runs):
        return None  # an order of one task transfers to nothing
    figure = Figure(figsize=(5.5, 4.2))
    axes = figure.subplots()
    for recipe, colour, marker in _styles(runs):
        points = np.array([[run.summary["last"], run.summary["transfer"]] for run in runs if run.recipe == recipe])
        axes.scatter(
            points[:, 0], points[:, 1], color=colour, marker=marker, s=55, label=recipe, edgecolor="white", linewidth=0.6, zorder=3
        )
    axes.set(xlabel="Last: all datasets after the last task (%)", ylabel="Transfer: datasets not yet learned (%)")
    axes.set_title("Plasticity against stability (up and right is better)", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="best")
    return figure


def _forgetting_curves(runs: Sequence[Run]) -> Figure:
    datasets = runs[0].datasets
    num_columns = min(3, len(datasets))
    num_rows = -(-len(datasets) // num_columns)
    figure = Figure(figsize=(3.6 * num_columns, 2.5 * num_rows + 0.5))
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True)
    for column, dataset in enumerate(datasets):
        axes = grid.flat[column]
        for recipe, colour, marker in _styles(runs):
            curve = mean_matrix([run for run in runs if run.recipe == recipe])[:, column]
            axes.plot(range(len(curve)), curve, color=colour, marker=marker, markersize=4, linewidth=1.4, label=recipe)
        # Left of the line the dataset is unseen (transfer), right of it it can be forgotten.
        axes.axvline(column + 1, color="0.6", linestyle=":", linewidth=1)
        axes.set_title(dataset, fontsize=9)
        axes.grid(alpha=0.25)
        axes.set_xticks(range(len(datasets) + 1), ["0-shot", *map(str, range(1, len(datasets) + 1))], fontsize=7)
    for axes in list(grid.flat)[len(datasets) :]:
        axes.set_visible(False)
    figure.supxlabel("after task", fontsize=9)
    figure.supylabel("accuracy (%)", fontsize=9)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=min(len(labels), 6), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def _accuracy_matrices(runs: Sequence[Run]) -> Figure:
    recipes = [recipe for recipe, _, _ in _styles(runs)]
    datasets = runs[0].datasets
    size = (0.42 if len(datasets) <= MOST_WITH_DECIMALS else 0.25) * len(datasets) + 1.4
    num_columns = min(3, len(recipes))
    num_rows = -(-len(recipes) // num_columns)
    figure = Figure(figsize=(size * num_columns, (size + 0.4) * num_rows))
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes, recipe in zip(grid.flat, recipes, strict=False):
        _heat_map(axes, np.where(counted(runs), mean_matrix([run for run in runs if run.recipe == recipe]), np.nan), datasets)
        axes.set_title(recipe, fontsize=10)
    for axes in list(grid.flat)[len(recipes) :]:
        axes.set_visible(False)
    figure.tight_layout()
    return figure


def _heat_map(axes: Axes, matrix: np.ndarray, datasets: list[str]) -> None:
    """NaN: a cell that does not count, left empty."""
    axes.imshow(matrix, cmap="cividis", vmin=0, vmax=100, aspect="equal")
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value) and len(datasets) <= MOST_WITH_NUMBERS:
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value < 55 else "black")
    for task in range(len(datasets)):  # the cell in which the column's dataset has just been learned
        axes.add_patch(matplotlib.patches.Rectangle((task - 0.5, task + 0.5), 1, 1, fill=False, edgecolor="white", linewidth=1.4))
    axes.set_xticks(range(len(datasets)), datasets, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(datasets) + 1), ["zero-shot", *(f"after {name}" for name in datasets)], fontsize=7)


def _training_curves(runs: Sequence[Run]) -> Figure | None:
    panels = curves(runs)
    if not panels:
        return None
    figure = Figure(figsize=(9, 1.9 * len(panels) + 0.6))
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)
    colours = {recipe: colour for recipe, colour, _ in _styles(runs)}
    for axes, (name, by_recipe) in zip(grid.flat, panels.items(), strict=True):
        for recipe, curve in by_recipe.items():
            axes.plot(*zip(*curve, strict=True), color=colours[recipe], linewidth=1, label=recipe)
        for task_index in range(1, len(runs[0].datasets)):
            axes.axvline(task_index * task_length(runs), color="0.7", linestyle=":", linewidth=1)
        axes.set_ylabel("\n".join(textwrap.wrap(label(name), 24)), fontsize=8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, loc="upper right")
    grid.flat[-1].set_xlabel("step (dotted: next task)", fontsize=9)
    figure.tight_layout()
    return figure


def _styles(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    return [(recipe, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]) for place, recipe in enumerate(recipes)]
