"""Trackers get what metrics.jsonl gets, and change no number."""

import json

import pytest

from gift_shared.errors import ConfigError
from gift_train.records.trackers import check_trackers, flat_numbers


def test_tensorboard_gets_every_logged_step_and_the_run_stays_the_same(quick_run, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert quick_run("finetune", tmp_path / "plain").code == 0
    assert quick_run("finetune", tmp_path / "tracked", "--tracker", "tensorboard").code == 0
    metrics = (tmp_path / "tracked" / "metrics.jsonl").read_text()
    assert metrics == (tmp_path / "plain" / "metrics.jsonl").read_text()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tracked" / "trackers" / "gift"))
    events.Reload()
    logged = [json.loads(line) for line in metrics.splitlines()]
    scalars = events.Scalars("terms/cross_entropy")
    assert [event.value for event in scalars] == pytest.approx([line["terms"]["cross_entropy"] for line in logged])
    assert [event.step for event in scalars] == sorted({event.step for event in scalars}), "steps count over the whole run"
    matrix = json.loads((tmp_path / "tracked" / "accuracy_matrix.json").read_text())["matrix"]
    assert [event.value for event in events.Scalars("accuracy/colours")] == pytest.approx([row[0] for row in matrix])


def test_an_unknown_tracker_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])


def test_numbers_are_flattened_and_places_left_out():
    row = {"task": "a", "task_index": 1, "step": 3, "learning_rate": 0.1, "terms": {"l2": 2.0}, "loss": 2.0}
    assert flat_numbers(row) == {"learning_rate": 0.1, "terms/l2": 2.0, "loss": 2.0}
