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
from gift_train.report.paper_tables.definition import PUBLISHED_METRICS, PaperTable, Published, TableRow
from gift_train.report.paper_tables.needed_runs import NeededRun, TableSetting, replay_shortage
from gift_train.report.summary_table import HEADINGS, METRICS, seed_statistics

PUBLISHED_WORLD = "mtil"  # the world whose numbers are printed
NOTHING = "-"
LINE_LENGTH = 110  # of notes under the table in a terminal


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One row and the runs of it that are there; `mean` and `deviation` by metric, empty without runs.

    reading: another way to evaluate the same weights, which the method reports beside its own; printed nowhere.
    """

    row: TableRow
    title: str  # the recipe's
    runs: tuple[NeededRun, ...]
    mean: Mapping[str, float]
    deviation: Mapping[str, float | None]
    reading: str | None = None

    @property
    def label(self) -> str:
        return self.row.label if self.reading is None else f"{self.row.label}: {self.reading}"

    @property
    def published(self) -> Published | None:
        return self.row.published if self.reading is None else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table with what is known of it. `is_comparable`: ours and the paper's were taken on the same order of tasks.

    Where they were not, what compares is the order of the rows: cells then show ranks in place of differences.
    """

    table: PaperTable
    setting: TableSetting
    rows: Sequence[ResultRow]

    @property
    def is_comparable(self) -> bool:
        return bool(self.setting.order.name == self.table.orders.get(PUBLISHED_WORLD))

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
        """By metric and label: (published rank, our rank), 1 = best, among the rows that have both. Equals share the better rank."""
        both = [result for result in self.rows if result.published is not None and result.mean]
        ranks = {}
        for metric in PUBLISHED_METRICS:
            published = rankdata([-getattr(result.published, metric) for result in both], method="min").astype(int)
            ours = rankdata([-result.mean[metric] for result in both], method="min").astype(int)
            ranks[metric] = {result.label: (int(there), int(here)) for result, there, here in zip(both, published, ours, strict=True)}
        return ranks

    def rank_correlation(self, metric: str) -> float | None:
        """Spearman's, between the published column and ours: Pearson's of the average ranks. None below 3 rows or without spread."""
        both = [(getattr(r.published, metric), r.mean[metric]) for r in self.rows if r.published is not None and r.mean]
        if len(both) < 3:
            return None
        published, ours = (rankdata(column) for column in zip(*both, strict=True))
        if np.ptp(published) == 0 or np.ptp(ours) == 0:
            return None
        return float(np.corrcoef(published, ours)[0, 1])


def compare(table: PaperTable, setting: TableSetting, needed: Sequence[NeededRun]) -> Comparison:
    """Gather the runs that are there under the rows of the table."""
    rows = []
    for row in table.rows:
        of_row = [one for one in needed if one.row is row]
        title = of_row[0].recipe.title
        there = tuple(one for one in of_row if one.run is not None)
        summaries = [one.run.summary for one in there if one.run is not None]
        mean, deviation = _statistics(summaries)
        rows.append(ResultRow(row=row, title=title, runs=there, mean=mean, deviation=deviation))
        for reading in summaries[0].get("readings", {}) if there else ():
            mean, deviation = _statistics([summary["readings"][reading] for summary in summaries])
            rows.append(ResultRow(row=row, title=title, runs=there, mean=mean, deviation=deviation, reading=reading))
    return Comparison(table=table, setting=setting, rows=rows)


def _statistics(summaries: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float | None]]:
    """Mean and deviation by metric; empty without runs. An order of a table has two tasks or more, so every mean is known."""
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
    fields += [f"{metric}_published{suffix}" for metric in PUBLISHED_METRICS for suffix in ("", "_doubt")]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    for result in comparison.rows:
        row = result.row
        line: dict[str, Any] = {"order": comparison.setting.order.name, "label": result.label, "recipe": row.recipe, "shards": row.shards}
        line |= {"seeds": _seeds(result), "runs": " ".join(one.folder.as_posix() for one in result.runs)}
        for metric in METRICS:
            line |= {metric: result.mean.get(metric), f"{metric}_deviation": result.deviation.get(metric)}
        for metric in PUBLISHED_METRICS:
            line[f"{metric}_published"] = getattr(result.published, metric, None)
            line[f"{metric}_published_doubt"] = (row.doubtful or {}).get(metric) if result.published is not None else None
        writer.writerow(line)
    return buffer.getvalue()


def _grid(comparison: Comparison) -> Grid:
    has_published = any(result.published is not None for result in comparison.rows)
    heading = [comparison.table.heading]
    for metric in PUBLISHED_METRICS:
        heading += [f"{HEADINGS[metric]} paper", "ours"] if has_published else [HEADINGS[metric]]
    lines = []
    for result in comparison.rows:
        about = result.row.about if result.reading is None else None
        line = [result.label + (f" [{comparison.note_numbers[about]}]" if about else "")]
        for metric in PUBLISHED_METRICS:
            line += [_published_cell(comparison, result, metric)] if has_published else []
            line.append(_our_cell(comparison, result, metric))
        lines.append([*line, str(len(result.runs))])
    return Grid([*heading, "seeds"], lines)


def _published_cell(comparison: Comparison, result: ResultRow, metric: str) -> str:
    if result.published is None:
        return NOTHING
    doubt = (result.row.doubtful or {}).get(metric)
    text = f"{getattr(result.published, metric):.1f}" + (f" [{comparison.note_numbers[doubt]}]" if doubt else "")
    rank = comparison.ranks[metric].get(result.label)
    return text if comparison.is_comparable or rank is None else f"{text} #{rank[0]}"


def _our_cell(comparison: Comparison, result: ResultRow, metric: str) -> str:
    if not result.mean:
        return NOTHING
    deviation, published = result.deviation[metric], result.published
    text = f"{result.mean[metric]:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")
    if published is None:
        return text
    if comparison.is_comparable:
        return f"{text} ({result.mean[metric] - getattr(published, metric):+.1f})"
    return f"{text} #{comparison.ranks[metric][result.label][1]}"


def _notes(comparison: Comparison) -> list[str]:
    notes = [*_notes_on_the_paper(comparison), *_notes_on_ours(comparison)]
    for note, number in comparison.note_numbers.items():
        told = comparison.table.notes[note]
        notes.append(f"[{number}] {told.about} ({told.verdict}): {told.text}")
    return notes


def _notes_on_the_paper(comparison: Comparison) -> list[str]:
    table = comparison.table
    notes = [f"Paper: {table.source}." + (f" {table.setting}" if table.setting else "")]
    num_ranked = len(comparison.ranks["last"])
    if not num_ranked:
        return notes
    if comparison.is_comparable:
        notes.append("In brackets: ours minus the paper's.")
    else:
        notes.append("The paper's numbers are of MTIL and share no scale with ours; #1 is the best of the rows that have both.")
    correlations = {metric: comparison.rank_correlation(metric) for metric in PUBLISHED_METRICS}
    shown = [f"{HEADINGS[metric]} {value:+.2f}" for metric, value in correlations.items() if value is not None]
    if shown:
        notes.append(f"Rank correlation (Spearman) of ours with the paper's over {num_ranked} rows: {', '.join(shown)}.")
    return notes


def _notes_on_ours(comparison: Comparison) -> list[str]:
    setting, notes = comparison.setting, []
    there = [one.run for result in comparison.rows for one in result.runs if one.run is not None]
    if there:
        model = setting.model + (f" ({setting.pretrained})" if setting.pretrained else "")
        seeds = ", ".join(map(str, sorted({run.summary["seed"] for run in there})))
        commits = ", ".join(sorted({str(run.record.get("commit")) for run in there}))
        notes.append(f"Ours: model {model}; seeds {seeds}, ± their sample deviation; commit {commits}.")
    if setting.overrides:
        notes.append(f"A trial, not the recipes' result: --set {' --set '.join(setting.overrides)}.")
    own_rows = [result for result in comparison.rows if result.reading is None]
    as_run = [f"{result.label} = {result.title}" for result in own_rows if result.title != result.label]
    if as_run:
        notes.append(f"Rows as run here: {'; '.join(as_run)}.")
    for result in own_rows:
        shortages = [shortage for one in result.runs if (shortage := replay_shortage(one, setting)) is not None]
        if shortages:
            found, asked = min(shortages)
            notes.append(f"{result.label}: replayed {found} images of a task where its recipe asks for {asked}.")
    return notes


def _seeds(result: ResultRow) -> str:
    return " ".join(str(one.run.summary["seed"]) for one in result.runs if one.run is not None)
