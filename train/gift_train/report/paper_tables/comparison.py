"""Ours beside the published numbers, as text, Markdown, LaTeX and CSV. Numbers come from run folders and from the table's file."""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import rankdata

from gift_train.report.grid import Grid, grid_latex, grid_markdown, grid_text, latex_escaped
from gift_train.report.paper_tables.definition import PUBLISHED_WORLD, PaperTable, Published, TableRow
from gift_train.report.paper_tables.needed_runs import NeededRun, TableSetting, replay_shortage
from gift_train.report.runs import Run
from gift_train.report.share_of_joint import LOWER, TITLE, UPPER, Share, share_text, shares_of_joint
from gift_train.report.share_of_joint import METRICS as SHARED_METRICS
from gift_train.report.summary_table import HEADINGS, METRICS, seed_statistics

NOTHING = "-"
LINE_LENGTH = 110  # of notes under the table in a terminal


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One row and the runs of it that are there; `mean` and `deviation` by metric, empty without runs.

    title: the recipe's; None for a row that is only printed. printed: its numbers on this order, or those that ranks compare with.
    reading: another way to evaluate the same weights, which the method reports beside its own; printed nowhere.
    """

    row: TableRow
    title: str | None
    printed: Published | None
    runs: tuple[NeededRun, ...]
    mean: Mapping[str, float]
    deviation: Mapping[str, float | None]
    reading: str | None = None

    @property
    def label(self) -> str:
        return self.row.label if self.reading is None else f"{self.row.label}: {self.reading}"

    @property
    def loaded_runs(self) -> list[Run]:
        """Its runs as their folders say."""
        return [one.run for one in self.runs if one.run is not None]

    def both(self, metric: str) -> tuple[float, float] | None:
        """(printed, ours) of a metric, percent; None unless there are both."""
        printed = None if self.printed is None else self.printed.number(metric)
        return (printed, self.mean[metric]) if printed is not None and metric in self.mean else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table with what is known of it. `is_comparable`: ours and the printed numbers were taken on the same order of tasks.

    Where they were not, what compares is the order of the rows: cells then show ranks in place of differences.
    """

    table: PaperTable
    setting: TableSetting
    rows: Sequence[ResultRow]

    @property
    def is_comparable(self) -> bool:
        return self.setting.order.name in self.table.printed_orders

    @property
    def title(self) -> str:
        """What stands above the table."""
        return f"{self.table.title}: {self.setting.order.display_name} (order {self.setting.order.name}), percent"

    @cached_property
    def note_numbers(self) -> dict[str, int]:
        """The number by which each note is referred to."""
        return {note: number for number, note in enumerate(self.table.notes, start=1)}

    @cached_property
    def ranks(self) -> dict[str, dict[str, tuple[int, int]]]:
        """By metric and label: (printed rank, our rank), 1 = best, among the rows that have both. Equals share the better rank."""
        ranks = {}
        for metric in self.table.metrics:
            both = self._rows_with_both(metric)
            printed, ours = (rankdata([-pair[side] for pair in both.values()], method="min").astype(int) for side in (0, 1))
            ranks[metric] = {label: (int(there), int(here)) for label, there, here in zip(both, printed, ours, strict=True)}
        return ranks

    def rank_correlation(self, metric: str) -> float | None:
        """Spearman's, between the printed column and ours: Pearson's of the average ranks. None below 3 rows or without spread."""
        both = self._rows_with_both(metric)
        if len(both) < 3:
            return None
        printed, ours = (rankdata(column) for column in zip(*both.values(), strict=True))
        if np.ptp(printed) == 0 or np.ptp(ours) == 0:
            return None
        return float(np.corrcoef(printed, ours)[0, 1])

    @cached_property
    def shares(self) -> dict[str, Share]:
        """By label, which share of the way from finetune to joint each row goes; of rows that have runs of seeds with both bounds."""
        bounds = [run for result in self.rows if result.row.recipe in (LOWER, UPPER) for run in result.loaded_runs]
        shares: dict[str, Share] = {}
        for result in self.rows:
            if result.reading is None and result.row.recipe not in (LOWER, UPPER):
                shares.update(zip([result.label], shares_of_joint([*bounds, *result.loaded_runs]), strict=False))
        return shares

    def _rows_with_both(self, metric: str) -> dict[str, tuple[float, float]]:
        return {result.label: both for result in self.rows if (both := result.both(metric)) is not None}


def compare(table: PaperTable, setting: TableSetting, needed: Sequence[NeededRun]) -> Comparison:
    """Gather the runs that are there under the rows of the table."""
    rows = []
    for row in table.rows:
        of_row = [one for one in needed if one.row is row]
        title = of_row[0].recipe.title if of_row else None
        there = tuple(one for one in of_row if one.run is not None)
        summaries = [one.run.summary for one in there if one.run is not None]
        mean, deviation = _statistics(summaries)
        printed = table.printed(row, setting.order.name)
        rows.append(ResultRow(row=row, title=title, printed=printed, runs=there, mean=mean, deviation=deviation))
        for reading in summaries[0].get("readings", {}) if there else ():
            mean, deviation = _statistics([summary["readings"][reading] for summary in summaries])
            rows.append(ResultRow(row=row, title=title, printed=None, runs=there, mean=mean, deviation=deviation, reading=reading))
    return Comparison(table=table, setting=setting, rows=rows)


def _statistics(summaries: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float | None]]:
    """Mean and deviation by metric; empty without runs. A metric that the order's protocol does not have is left out."""
    if not summaries:
        return {}, {}
    mean, deviation = seed_statistics(summaries)
    return {metric: value for metric, value in mean.items() if value is not None}, deviation


def comparison_text(comparison: Comparison) -> str:
    """For a terminal."""
    notes = [textwrap.fill(note, LINE_LENGTH, subsequent_indent="    ", break_on_hyphens=False) for note in _notes(comparison)]
    return "\n".join([comparison.title, "", grid_text(_grid(comparison)), "", *notes])


def comparison_markdown(comparison: Comparison) -> str:
    """A GitHub table under its title, the notes as a list."""
    notes = [f"- {note}" for note in _notes(comparison)]
    return "\n".join([f"**{comparison.title}**", "", grid_markdown(_grid(comparison)), "", *notes])


def comparison_latex(comparison: Comparison) -> str:
    """A table environment for a paper; needs booktabs. The notes stand under it in small print."""
    notes = [f"\\par {latex_escaped(note)}" for note in _notes(comparison)]
    lines = [r"\begin{table}", r"\centering", f"\\caption{{{latex_escaped(comparison.title)}}}", grid_latex(_grid(comparison))]
    return "\n".join([*lines, r"\par\medskip\raggedright\footnotesize", *notes, r"\end{table}"])


def comparison_csv(comparison: Comparison) -> str:
    """Full precision, one line a row."""
    fields = ["order", "label", "recipe", "shards", "seeds", "runs"]
    fields += [f"{metric}{suffix}" for metric in METRICS for suffix in ("", "_deviation")]
    fields += [f"{metric}_share_of_joint" for metric in SHARED_METRICS]
    fields += [f"{metric}_published{suffix}" for metric in comparison.table.metrics for suffix in ("", "_doubt")]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    for result in comparison.rows:
        row = result.row
        line: dict[str, Any] = {"order": comparison.setting.order.name, "label": result.label, "recipe": row.recipe, "shards": row.shards}
        line |= {"seeds": _seeds(result), "runs": " ".join(one.folder.as_posix() for one in result.runs)}
        for metric in METRICS:
            line |= {metric: result.mean.get(metric), f"{metric}_deviation": result.deviation.get(metric)}
        for metric in SHARED_METRICS if result.reading is None else ():
            line[f"{metric}_share_of_joint"] = getattr(comparison.shares.get(result.label), metric, None)
        for metric in comparison.table.metrics:
            line[f"{metric}_published"] = None if result.printed is None else result.printed.number(metric)
            line[f"{metric}_published_doubt"] = (row.doubtful or {}).get(metric) if result.printed is not None else None
        writer.writerow(line)
    return buffer.getvalue()


def _grid(comparison: Comparison) -> Grid:
    has_printed = any(result.printed is not None for result in comparison.rows)
    heading = [comparison.table.heading]
    for metric in comparison.table.metrics:
        heading += [f"{HEADINGS[metric]} paper", "ours"] if has_printed else [HEADINGS[metric]]
    lines = []
    for result in comparison.rows:
        notes = result.row.notes if result.reading is None else []
        line = [result.label + "".join(f" [{comparison.note_numbers[note]}]" for note in notes)]
        for metric in comparison.table.metrics:
            line += [_printed_cell(comparison, result, metric)] if has_printed else []
            line.append(_our_cell(comparison, result, metric))
        lines.append([*line, NOTHING if result.row.recipe is None else str(len(result.runs))])
    return Grid([*heading, "seeds"], lines)


def _printed_cell(comparison: Comparison, result: ResultRow, metric: str) -> str:
    number = None if result.printed is None else result.printed.number(metric)
    if number is None:
        return NOTHING
    doubt = (result.row.doubtful or {}).get(metric)
    text = f"{number:.1f}" + (f" [{comparison.note_numbers[doubt]}]" if doubt else "")
    rank = comparison.ranks[metric].get(result.label)
    return text if comparison.is_comparable or rank is None else f"{text} #{rank[0]}"


def _our_cell(comparison: Comparison, result: ResultRow, metric: str) -> str:
    if metric not in result.mean:
        return NOTHING
    deviation, both = result.deviation[metric], result.both(metric)
    text = f"{result.mean[metric]:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")
    if both is None:
        return text
    if comparison.is_comparable:
        return f"{text} ({both[1] - both[0]:+.1f})"
    return f"{text} #{comparison.ranks[metric][result.label][1]}"


def _notes(comparison: Comparison) -> list[str]:
    notes = [*_notes_on_the_paper(comparison), *_notes_on_ours(comparison), *_note_on_shares(comparison)]
    for note, number in comparison.note_numbers.items():
        told = comparison.table.notes[note]
        notes.append(f"[{number}] {told.about} ({told.verdict}): {told.text}")
    return notes


def _notes_on_the_paper(comparison: Comparison) -> list[str]:
    table = comparison.table
    notes = [f"Paper: {table.source}." + (f" {table.setting}" if table.setting else "")]
    num_ranked = {metric: len(ranks) for metric, ranks in comparison.ranks.items() if ranks}
    if not num_ranked:
        return notes
    if comparison.is_comparable:
        notes.append("In brackets: ours minus the paper's.")
    else:
        printed_on = table.orders.get(PUBLISHED_WORLD)
        notes.append(
            f"The paper's numbers are of order {printed_on} and share no scale with ours; #1 is the best of the rows that have both."
        )
    correlations = {metric: comparison.rank_correlation(metric) for metric in num_ranked}
    for count in sorted(set(num_ranked.values()), reverse=True):
        shown = [
            f"{HEADINGS[name]} {value:+.2f}" for name, value in correlations.items() if value is not None and num_ranked[name] == count
        ]
        if shown:
            notes.append(f"Rank correlation (Spearman) of ours with the paper's over {count} rows: {', '.join(shown)}.")
    return notes


def _notes_on_ours(comparison: Comparison) -> list[str]:
    setting, notes = comparison.setting, []
    there = [run for result in comparison.rows for run in result.loaded_runs]
    if there:
        model = setting.model + (f" ({setting.pretrained})" if setting.pretrained else "")
        seeds = ", ".join(map(str, sorted({run.summary["seed"] for run in there})))
        commits = ", ".join(sorted({str(run.record.get("commit")) for run in there}))
        notes.append(f"Ours: model {model}; seeds {seeds}, ± their sample deviation; commit {commits}.")
    if setting.overrides:
        notes.append(f"A trial, not the recipes' result: --set {' --set '.join(setting.overrides)}.")
    own_rows = [result for result in comparison.rows if result.reading is None]
    as_run = [f"{result.label} = {result.title}" for result in own_rows if result.title not in (None, result.label)]
    if as_run:
        notes.append(f"Rows as run here: {'; '.join(as_run)}.")
    for result in own_rows:
        shortages = [shortage for one in result.runs if (shortage := replay_shortage(one, setting)) is not None]
        if shortages:
            found, asked = min(shortages)
            notes.append(f"{result.label}: replayed {found} images of a task where its recipe asks for {asked}.")
    return notes


def _note_on_shares(comparison: Comparison) -> list[str]:
    shown = [
        f"{label} {' / '.join(share_text(getattr(share, metric)) for metric in SHARED_METRICS)}"
        for label, share in comparison.shares.items()
    ]
    return [f"{TITLE}, {' / '.join(SHARED_METRICS.values())}: {'; '.join(shown)}."] if shown else []


def _seeds(result: ResultRow) -> str:
    return " ".join(str(run.summary["seed"]) for run in result.loaded_runs)
