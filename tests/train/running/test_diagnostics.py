"""What a run notes for the report: true of the run, the same after an interruption, and without influence on any number."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gift_shared.errors import DataError
from gift_shared.preemption import PreemptionNotice
from gift_train.options import RunOptions
from gift_train.records.diagnostics.files import diagnostics_file, read_diagnostics
from gift_train.records.diagnostics.record import half_share
from gift_train.training.run import train

SETTINGS = (
    "steps=12",
    "warmup_steps=2",
    "batch_size=6",
    "replay_batch_size=6",
    "log_every=4",
    "learning_rate=1e-2",
    "replay.num_images=10",
)


def request(world, out, *settings, stop_after=None):
    return RunOptions(
        order="pair", recipe="gift", overrides=[*SETTINGS, *settings], model=str(world.root / "model"), shards=str(world.root / "shards"),
        data_root=world.root / "data", manifests=[world.root / "manifests"], out=out, device="cpu", stop_after=stop_after,
    )  # fmt: skip


def run(request):
    with PreemptionNotice() as notice:
        train(request, notice)


@pytest.fixture(scope="module")
def gift_run(tmp_path_factory, world):
    """A run of GIFT over two tasks; read, never changed."""
    out = tmp_path_factory.mktemp("noted") / "run"
    run(request(world, out))
    return out


def notes(folder, kind, number, name):
    return read_diagnostics(diagnostics_file(folder, kind, number, name), kind)


def test_noted_predictions_give_the_accuracy_matrix(gift_run):
    accuracies = json.loads((gift_run / "accuracy_matrix.json").read_text())
    rows = [accuracies["zero_shot"], *accuracies["matrix"]]
    for number, name in enumerate(["zero_shot", "colours", "stripes"]):
        right = {dataset: [] for dataset in accuracies["datasets"]}
        for row in notes(gift_run, "predictions", number, name).to_pylist():
            right[row["dataset"]].append(100.0 * (row["label"] == row["predicted"]))
        found = [sum(values) / len(values) for values in right.values()]
        assert found == pytest.approx(rows[number])


def test_forgotten_images_were_right_before_and_are_wrong_after(gift_run):
    num_seen = 0
    for number, names in ((1, ("zero_shot", "colours")), (2, ("colours", "stripes"))):
        before, after = (notes(gift_run, "predictions", number - 1 + place, name).to_pylist() for place, name in enumerate(names))
        lost = [
            (one["dataset"], one["index"])
            for one, other in zip(before, after, strict=True)
            if one["label"] == one["predicted"] and other["label"] != other["predicted"]
        ]
        shown = notes(gift_run, "forgotten", number, names[1]).to_pylist()
        assert {(row["dataset"], row["index"]) for row in shown} <= set(lost)
        for row in shown:
            assert row["num_forgotten"] == sum(dataset == row["dataset"] for dataset, _ in lost)
            assert row["class_name"] != row["predicted_class_name"]
            assert Image.open(io.BytesIO(row["picture"])).size == (16, 16)
        num_seen += len(shown)
        assert bool(lost) == bool(shown)
    assert num_seen


def test_replay_notes_cover_every_image_and_start_where_the_last_task_ended(gift_run):
    for number, name in enumerate(["colours", "stripes"], start=1):
        rows = notes(gift_run, "replay", number, name).to_pylist()
        assert [row["sample_key"] for row in rows] == [f"{name}-{place:06d}" for place in range(10)]
        for row in rows:
            assert -1.001 <= row["similarity_before"] <= 1.001
            assert 0 < row["probability_after"] <= 1
            assert row["rank_after"] in (1, 2, 3)
            assert row["divergence"] >= 0
        assert any(row["similarity_before"] != row["similarity_after"] for row in rows)


def test_logged_steps_tell_how_far_the_weights_moved_and_what_the_fisher_leans_on(gift_run):
    rows = [json.loads(line) for line in (gift_run / "metrics.jsonl").read_text().splitlines()]
    first = [row["measurements"] for row in rows if row["task_index"] == 0]
    assert first[-1]["distance_from_task_start"] > first[0]["distance_from_task_start"] > 0
    assert all(0 < row["measurements"]["fisher_half_share"] < 0.5 for row in rows)


def test_diagnostics_change_no_number(gift_run, world, tmp_path):
    run(request(world, tmp_path / "run", "diagnostics=false"))
    assert not (tmp_path / "run/diagnostics").exists()
    assert (tmp_path / "run/accuracy_matrix.json").read_bytes() == (gift_run / "accuracy_matrix.json").read_bytes()
    rows, noted = ([json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in (tmp_path / "run", gift_run))
    assert [row["terms"] for row in rows] == [row["terms"] for row in noted]


def test_a_resumed_run_notes_the_same(gift_run, world, tmp_path):
    run(request(world, tmp_path / "run", stop_after=1))
    shutil.rmtree(tmp_path / "run/diagnostics")  # as if killed after the weights were saved ...
    accuracies = json.loads((tmp_path / "run/accuracy_matrix.json").read_text())
    (tmp_path / "run/accuracy_matrix.json").write_text(json.dumps(accuracies | {"zero_shot": None, "matrix": []}))  # ... and nothing more
    # The zero-shot evaluation is made again from the initial weights, the first task's from its checkpoint.
    run(request(world, tmp_path / "run"))
    for path in sorted((gift_run / "diagnostics").iterdir()):
        assert (tmp_path / "run/diagnostics" / path.name).read_bytes() == path.read_bytes(), path.name


def test_half_share_counts_the_smallest_set_that_carries_half():
    assert half_share({"even": torch.ones(100)}) == 0.5
    assert half_share({"one": torch.tensor([9.0, 1.0, 1.0, 1.0]), "other": torch.zeros(6)}) == 0.1
    many = torch.from_numpy(np.random.default_rng(0).exponential(size=200_000))
    assert half_share({"many": many}, most=20_000) == pytest.approx(half_share({"many": many}), abs=0.01)


def test_a_diagnostics_file_of_another_version_is_refused(tmp_path):
    (tmp_path / "forgotten-01-x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"not a readable Parquet file.*Delete it; the report does without"):
        read_diagnostics(tmp_path / "forgotten-01-x.parquet", "forgotten")
