"""gift-train watch: how a run is doing, in the terminal. Reads the run folder only, so it may start, stop or stay as it likes."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gift_shared.errors import ConfigError
from gift_shared.event_log import read_events
from gift_train.records.accuracies import further_spaces, own_space
from gift_train.records.files import (
    LOG_FILE,
    METRICS_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    read_accuracies,
    read_metrics,
    read_record,
    steps_of_tasks,
)  # fmt: skip

BLOCKS = "▁▂▃▄▅▆▇█"
HISTORY = 32  # logged steps in a sparkline
RATE_SECONDS = 60.0  # the live rate is taken over so long
QUIET_SECONDS = 120.0  # without a new line for longer, the view says so
STARTS = ("task_started", "resumed")
ENDINGS = {
    "preempted": "preempted", "interrupted": "interrupted", "failed": "failed", "ended": "stopped as asked",
}  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """What the files of a run say at one moment."""

    record: dict[str, Any]  # run.json
    rows: Sequence[dict[str, Any]]  # metrics.jsonl
    accuracy: dict[str, Any]
    is_finished: bool
    written: float | None  # when metrics.jsonl last grew, seconds since 1970
    events: Sequence[dict[str, Any]] = ()  # log.jsonl

    @cached_property
    def updates(self) -> list[int]:
        """Of each task."""
        return [steps + 1 for steps in steps_of_tasks(self.record)]

    @property
    def num_steps(self) -> int:
        """Updates of the whole run."""
        return sum(self.updates)

    def steps_before(self, task_index: int) -> int:
        """Updates of all tasks before."""
        return sum(self.updates[:task_index])

    @property
    def steps_done(self) -> int:
        """Updates done as of the last logged one."""
        if not self.rows:
            return self.num_steps if self.is_finished else 0
        return self.steps_before(self.rows[-1]["task_index"]) + int(self.rows[-1]["step"]) + 1


class Pace:
    """Updates per second by when lines of metrics.jsonl were written: lately while it was looked at, else since the run's last start."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()  # when a line was written, and updates done by then

    def rate(self, snapshot: Snapshot) -> float | None:
        """Updates per second; None while nothing can be said."""
        if self._seen and snapshot.steps_done < self._seen[-1][1]:
            self._seen.clear()  # the run went on from a checkpoint before
        if snapshot.written is not None and (not self._seen or snapshot.steps_done > self._seen[-1][1]):
            self._seen.append((snapshot.written, snapshot.steps_done))
        while len(self._seen) > 2 and self._seen[-1][0] - self._seen[1][0] >= RATE_SECONDS:
            self._seen.popleft()
        if len(self._seen) > 1 and self._seen[-1][0] > self._seen[0][0]:
            return (self._seen[-1][1] - self._seen[0][1]) / (self._seen[-1][0] - self._seen[0][0])
        return _rate_since_start(snapshot)


def watch_command(run: Path, *, once: bool, every: float) -> None:
    """Show the run until it is finished or interrupted; `once` prints one frame. Raises ConfigError if there is no run."""
    pace, console = Pace(), Console()
    snapshot = read_snapshot(run)
    if once:
        console.print(frame(snapshot, pace.rate(snapshot), time.time()))
        return
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            snapshot = read_snapshot(run)
            live.update(frame(snapshot, pace.rate(snapshot), time.time()))
            if snapshot.is_finished:
                return
            time.sleep(every)


def read_snapshot(run: Path) -> Snapshot:
    """Read a run that may be running: a line that is being written is passed over."""
    if not (run / RUN_FILE).exists():
        raise ConfigError(f"{run} is no run folder: it has no {RUN_FILE}, which `gift-train run --out {run}` writes first.")
    record, metrics = read_record(run), run / METRICS_FILE
    rows = read_metrics(run, len(record["datasets"]))
    accuracy = read_accuracies(run, record["datasets"]) or {"zero_shot": None, "matrix": []}
    written = metrics.stat().st_mtime if metrics.is_file() else None
    events = read_events(run / LOG_FILE) if (run / LOG_FILE).is_file() else []
    return Snapshot(record, rows, accuracy, (run / SUMMARY_FILE).is_file(), written, events)


def frame(snapshot: Snapshot, rate: float | None, now: float) -> RenderableType:
    """One picture of the run; `now` in seconds since 1970."""
    return Group(_heading(snapshot, rate, now), "", *_terms(snapshot), *_accuracies(snapshot))


def _heading(snapshot: Snapshot, rate: float | None, now: float) -> RenderableType:
    record, done, total = snapshot.record, snapshot.steps_done, snapshot.num_steps
    title = Text(f"{record['recipe'].get('title', record['recipe_name'])}, order {record['order']}, seed {record['seed']}", style="bold")
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=total, completed=done, width=40), f"{100 * done // total} %  {done:,} of {total:,} steps")
    lines: list[RenderableType] = [title, bar]
    if snapshot.is_finished:
        lines.append(Text("finished", style="green"))
        return Group(*lines)
    where = "before the first task"
    if snapshot.rows:
        last = snapshot.rows[-1]
        where = f"task {last['task_index'] + 1} of {len(record['datasets'])}, {last['task']}, "
        where += f"step {last['step']} of {snapshot.updates[last['task_index']] - 1}"
    stopped = _stopped(snapshot.events[-1] if snapshot.events else None)
    if rate and stopped is None:
        where += f"   {rate:.2f} steps/s, {_duration((total - done) / rate)} left"
    lines.append(Text(where))
    if stopped is not None:
        lines.append(Text(stopped, style="yellow"))
    elif snapshot.written is not None and now - snapshot.written > QUIET_SECONDS:
        lines.append(Text(f"no new line for {_duration(now - snapshot.written)}: evaluating, or stopped", style="yellow"))
    return Group(*lines)


def _stopped(event: dict[str, Any] | None) -> str | None:
    """That the last start of the run ended before the run did, and why."""
    if event is None or event["event"] not in ENDINGS:
        return None
    return f"{ENDINGS[event['event']]} {event.get('time', '')}: {event.get('message', '')}".rstrip(": ")


def _terms(snapshot: Snapshot) -> list[RenderableType]:
    if not snapshot.rows:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("term")
    table.add_column("now", justify="right")
    table.add_column("this task")
    last = snapshot.rows[-1]
    of_task = [row for row in snapshot.rows if row["task_index"] == last["task_index"]][-HISTORY:]
    for group in ("terms", "measurements"):
        for name, value in last.get(group, {}).items():
            table.add_row(name.replace("_", " "), f"{value:.4g}", sparkline([row.get(group, {}).get(name) for row in of_task]))
    table.add_row("loss", f"{last['loss']:.4g}", sparkline([row["loss"] for row in of_task]))
    table.add_row("learning rate", f"{last['learning_rate']:.2e}", sparkline([row["learning_rate"] for row in of_task]))
    return [table, ""]


def _accuracies(snapshot: Snapshot) -> list[RenderableType]:
    zero_shot, matrix = snapshot.accuracy["zero_shot"], snapshot.accuracy["matrix"]
    if zero_shot is None:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    own, others = own_space(snapshot.accuracy), further_spaces(snapshot.accuracy)
    table.add_column("accuracy (%)")
    for heading in ("zero-shot", "learned", "now", "change", *others):
        table.add_column(heading, justify="right")
    now = matrix[-1] if matrix else zero_shot
    beside = [one["matrix"][-1] if one["matrix"] else one["zero_shot"] for one in others.values()]
    for place, dataset in enumerate(snapshot.record["datasets"]):
        learned = matrix[place][place] if place < len(matrix) else None
        change = now[place] - (zero_shot[place] if learned is None else learned)
        colour = "" if abs(change) < 0.05 else "green" if change > 0 else "red"
        shown = "" if learned is None else f"{learned:.1f}"
        changed = Text(f"{change:+.1f}", style=colour)
        table.add_row(dataset, f"{zero_shot[place]:.1f}", shown, f"{now[place]:.1f}", changed, *(f"{row[place]:.1f}" for row in beside))
    means = [f"{sum(row) / len(row):.1f}" for row in (zero_shot, now, *beside)]
    table.add_row("mean", means[0], "", means[1], "", *means[2:], style="bold")
    told = ["change: since the dataset was learned, for those not yet learned since zero-shot"]
    if own != "known" or others:
        told.append(f"label space: {own}" + (f"; beside it, now: {', '.join(others)}" if others else ""))
    return [table, Text("\n".join(told), style="dim")]


def sparkline(values: Sequence[float | None]) -> str:
    """One block for each value, its height between the least and the greatest."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known) or 1.0
    return "".join(" " if value is None else BLOCKS[min(7, int(8 * (value - low) / span))] for value in values)


def _rate_since_start(snapshot: Snapshot) -> float | None:
    start: dict[str, Any] = next((event for event in reversed(snapshot.events) if event["event"] in STARTS), {})
    try:
        began = datetime.fromisoformat(start["time"]).timestamp()
        first = snapshot.steps_before(int(start["task_index"])) + int(start["step"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if snapshot.written is None or snapshot.written <= began or snapshot.steps_done <= first:
        return None
    return (snapshot.steps_done - first) / (snapshot.written - began)


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    if minutes < 2:
        return f"{int(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
