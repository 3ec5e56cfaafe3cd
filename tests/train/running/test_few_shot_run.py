"""A run of an order with `shots`: fewer training images, on record, and no other run's folder."""

import json

import pytest


@pytest.fixture
def few(world, tmp_path):
    """The order of the tests' world with two shots, as a file."""
    path = tmp_path / "few.toml"
    path.write_text((world.root / "manifests/orders/pair.toml").read_text().replace('"pair"', '"few"') + "shots = 2\n")
    return path


def test_a_few_shot_run_trains_on_its_shots_and_records_them(quick_run, few, tmp_path):
    out = tmp_path / "run"
    assert quick_run("finetune", out, f"--order={few}").code == 0
    records = [json.loads(path.read_text()) for path in sorted((out / "few_shot").glob("*.json"))]
    assert [record["dataset"] for record in records] == sorted(json.loads((out / "run.json").read_text())["datasets"])
    for record in records:
        names = [image["class_name"] for image in record["images"]]
        assert {names.count(name) for name in names} == {2}
    assert quick_run("finetune", out, f"--order={few}").code == 0, "the same run again"


def test_another_number_of_shots_is_another_run(quick_run, few, tmp_path):
    assert quick_run("finetune", tmp_path / "run", f"--order={few}", "--stop-after=1").code == 0
    few.write_text(few.read_text().replace("shots = 2", "shots = 3"))
    outcome = quick_run("finetune", tmp_path / "run", f"--order={few}")
    assert outcome.code == 2
    assert "shots is 2 there and 3 here" in outcome.err.splitlines()[-1]


def test_more_shots_than_a_class_has_are_told_before_training(quick_run, few, tmp_path):
    few.write_text(few.read_text().replace("shots = 2", "shots = 1000"))
    outcome = quick_run("finetune", tmp_path / "run", f"--order={few}")
    assert outcome.code != 0
    assert "training images, the order asks for shots = 1000" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
