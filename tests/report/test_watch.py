"""The live view tells what the run's files say, at any moment of the run."""

import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from gift_shared.errors import ConfigError
from gift_train.report.watch import Pace, frame, read_snapshot, sparkline, watch_command


@pytest.fixture
def run(runs: Path) -> Path:
    """A run in the middle of its second task: no summary yet, one row of accuracies, a line half written."""
    run = runs / "gift-1"
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:9]) + lines[9][:20])
    accuracy = json.loads((run / "accuracy_matrix.json").read_text())
    accuracy["matrix"] = [[61.0, 40.0, 60.0]]
    (run / "accuracy_matrix.json").write_text(json.dumps(accuracy))
    return run


def shown(run: Path, rate: float | None = None, later: float = 1.0) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    snapshot = read_snapshot(run)
    console.print(frame(snapshot, rate, (snapshot.written or 0) + later))
    return console.export_text()


def test_a_running_run_tells_task_step_rate_and_time_left(run: Path) -> None:
    text = shown(run, rate=0.5)
    assert "gift, order mini, seed 1" in text
    assert "task 2 of 3, digits, step 10 of 29" in text
    assert "45 %  41 of 90 steps" in text
    assert "0.50 steps/s, 98 s left" in text


def test_every_term_is_shown_with_its_course_in_this_task(run: Path) -> None:
    line = next(line for line in shown(run).splitlines() if line.startswith("cross entropy"))
    assert line.split()[2:] == ["0.1818", "█▁▁"]
    assert "fisher half share" in shown(run)


def test_accuracies_stand_against_what_they_were(run: Path) -> None:
    rows = {line.split()[0]: line.split()[1:] for line in shown(run).splitlines() if line.startswith(("shapes", "digits"))}
    assert rows == {"shapes": ["30.0", "61.0", "61.0", "+0.0"], "digits": ["45.0", "40.0", "-5.0"]}


def test_a_silent_run_is_told(run: Path) -> None:
    assert "no new line for 10 min: evaluating, or stopped" in shown(run, later=605)
    assert "no new line" not in shown(run)


def log_steps(run: Path, *steps: int, written: float) -> None:
    """Lines of the second task up to these steps, the last one written at that time."""
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"task_index": 0' in line]
    rows = [json.dumps(json.loads(lines[-1]) | {"task": "digits", "task_index": 1, "step": step}) for step in steps]
    (run / "metrics.jsonl").write_text("".join(line + "\n" for line in [*lines, *rows]))
    os.utime(run / "metrics.jsonl", (written, written))


def test_rate_is_that_of_the_lines_written_while_looking_however_slow(run: Path) -> None:
    pace = Pace()
    log_steps(run, 0, written=1000.0)
    pace.rate(read_snapshot(run))
    log_steps(run, 0, 10, written=1100.0)
    assert pace.rate(read_snapshot(run)) == pytest.approx(0.1)
    assert pace.rate(read_snapshot(run)) == pytest.approx(0.1)  # and looking again before the next line changes nothing
    log_steps(run, 0, 10, 20, written=1200.0)
    assert pace.rate(read_snapshot(run)) == pytest.approx(0.1)


def test_rate_before_anything_was_seen_is_that_since_the_last_start(run: Path) -> None:
    log_steps(run, 0, 10, 20, written=datetime(2026, 1, 2, 8, 0, 10, tzinfo=UTC).timestamp())
    write_log(run, ("task_started", "2026-01-01T00:00:00+00:00", 0), ("preempted", "2026-01-01T00:01:00+00:00", None))
    assert "preempted" in shown(run, rate=1.0)
    assert "steps/s" not in shown(run, rate=1.0)  # nor how long it would take
    write_log(run, ("task_started", "2026-01-01T00:00:00+00:00", 0), ("resumed", "2026-01-02T08:00:00+00:00", 1))
    assert Pace().rate(read_snapshot(run)) == pytest.approx(2.0)  # updates 1 to 20 in ten seconds


def write_log(run: Path, *events: tuple[str, str, int | None]) -> None:
    rows = [{"event": event, "time": time, "task_index": 1, "step": step} for event, time, step in events]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_once_prints_a_frame_and_a_finished_run_ends_the_view(runs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch_command(run, once=True, every=1.0)
    assert "task 2 of 3" in capsys.readouterr().out
    watch_command(runs / "l2", once=False, every=1.0)
    assert "finished" in capsys.readouterr().out


def test_a_run_that_has_not_logged_yet_is_shown(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "accuracy_matrix.json").unlink()
    assert "before the first task" in shown(run)


def test_no_run_folder_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run folder: it has no run\.json"):
        watch_command(tmp_path, once=True, every=1.0)


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([0, 1, None, 8]) == "▁▂ █"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""
