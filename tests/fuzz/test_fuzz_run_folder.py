"""A run's folder, as resume, watch, report and table read it, with anything in its files."""

import io
import json
from contextlib import closing

import pytest
from hostile import damages, fuzz, reads_or_tells, table_changes
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gift_shared.event_log import read_events
from gift_shared.manifests import OrderManifest
from gift_train.records.files import read_accuracies, read_metrics, read_record, read_summary, read_timing
from gift_train.records.run_folder import RunFolder
from gift_train.report.command import report_command
from gift_train.report.watch import Pace, frame, read_snapshot

DATASETS = ["colours", "stripes"]
RECIPE = {"title": "GIFT", "method": "gift", "steps": 2, "method_config": {"distill_weight": 1.0}}
IDENTITY = {
    "recipe_name": "gift",
    "recipe": RECIPE,
    "order": "pair",
    "datasets": DATASETS,
    "seed": 42,
    "shards": None,
    "task_steps": [2, 2],
}
ORDER = OrderManifest(name="pair", display_name="Pair", pretraining_source="base", tasks=tuple(DATASETS), recipes="mini")
NUMBERS = {"transfer": 40.0, "avg": 50.0, "last": 60.0, "forgetting": -1.0}
MATRIX = [[50.0, 40.0], [45.0, 80.0]]
LINES = [
    {"task": task, "task_index": number, "step": step, "learning_rate": 1e-3, "terms": {"l2": 1.0}, "loss": 1.0, "measurements": {"a": 2.0}}
    for number, task in enumerate(DATASETS)
    for step in range(3)
]
FILES = {
    "run.json": {
        "identity": IDENTITY, **IDENTITY, "command": ["gift-train", "run"], "versions": {"torch": "2"}, "commit": "abc",
        "hardware": {"processor": "x", "cores": 2, "threads": 1, "accelerators": []}, "started": "2026-01-01T00:00:00+00:00", "ended": None,
    },
    "accuracy_matrix.json": {
        "order": "pair", "datasets": DATASETS, "zero_shot": [30.0, 35.0], "matrix": MATRIX, "readings": {"x": MATRIX},
        "test_images": [30, 10], "protocol": "class-incremental",
    },
    "summary.json": {
        "method": "gift", "title": "GIFT", "recipe": "gift", "order": "pair", "seed": 42, **NUMBERS, "readings": {"x": NUMBERS},
        "protocol": "class-incremental",
        "seconds": {"train": 1.0, "evaluate": 2.0}, "per_dataset": {"colours": {"zero_shot": 1.0, "transfer": None}},
    },
    "timing.json": {"train": {"colours": 1.0}, "evaluate": {"zero_shot": 0.5}},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "gift"


def write(run, name=None, content=b""):
    """A whole run folder, one file of which holds something else."""
    run.mkdir(exist_ok=True)
    for file, table in FILES.items():
        (run / file).write_text(json.dumps(table))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (run / "log.jsonl").write_text('{"event": "failed", "time": "now", "message": "x"}\n')
    if name is not None:
        (run / name).write_bytes(content)


def use(run):
    """What the commands do with a run folder, but for the pictures."""
    readers = (
        lambda: report_command([run], None, as_json=True),
        lambda: report_command([run], None, as_json=False),
        lambda: Console(file=io.StringIO()).print(frame(read_snapshot(run), Pace().rate(read_snapshot(run)), 2e9)),
        lambda: resume(run),
        lambda: read_events(run / "log.jsonl"),
    )
    return [reads_or_tells(read, *(run / file for file in FILES), run / "metrics.jsonl", f"--out {run}") for read in readers]


def resume(run):
    """Open the folder as `run` does and read all it goes on from."""
    with closing(RunFolder(run, IDENTITY)) as folder:
        accuracies = folder.accuracies(ORDER, [30, 10])
        folder.timing()
        if len(accuracies["matrix"]) == len(DATASETS):
            folder.finish(accuracies)


@fuzz(100)
@given(name=st.sampled_from(sorted(FILES)), change=table_changes())
def test_a_run_folder_with_anything_in_it_is_told(run, name, change):
    write(run, name, json.dumps(change(FILES[name])).encode())
    use(run)


@fuzz(60)
@given(name=st.sampled_from([*sorted(FILES), "metrics.jsonl", "log.jsonl"]), damage=damages())
def test_a_damaged_run_folder_is_told(run, name, damage):
    write(run)
    write(run, name, damage((run / name).read_bytes()))
    use(run)


@fuzz(60)
@given(number=st.integers(0, 5), change=table_changes())
def test_a_log_with_anything_in_it_is_told(run, number, change):
    lines = [*LINES[:number], change(LINES[number]), *LINES[number + 1 :]]
    write(run, "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    use(run)


@fuzz(4)
@given(name=st.sampled_from(sorted(FILES)), change=table_changes())
def test_a_report_page_of_a_strange_run_is_written_or_told(run, tmp_path_factory, name, change):
    out = tmp_path_factory.mktemp("report")
    write(run, name, json.dumps(change(FILES[name])).encode())
    reads_or_tells(lambda: report_command([run], out / "in", as_json=False), *(run / file for file in FILES))
    assert {path.name for path in out.iterdir()} <= {"in"}, "the report wrote beside its folder"


def test_a_sound_run_folder_is_read_by_all(run):
    write(run)
    assert all(use(run))
    assert read_record(run)["seed"] == 42
    assert read_accuracies(run, DATASETS)["matrix"] == MATRIX
    assert len(read_metrics(run, 2)) == 6
    assert read_summary(run)["avg"] == (50 + (30 * 45 + 10 * 80) / 40) / 2
    assert read_timing(run)["train"] == {"colours": 1.0}
