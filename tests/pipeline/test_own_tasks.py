"""A user's own two tasks, from manifests and image folders to the report, through the command lines alone."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., subprocess.CompletedProcess[str]]

CLASSES = {"my_colours": ["red thing", "green thing", "blue thing"], "my_bars": ["upright bar", "level bar"]}


def draw(dataset: str, class_name: str, number: int) -> Image.Image:
    rng = np.random.default_rng([number, len(class_name)])
    pixels = rng.integers(60, 90, (40, 48, 3), dtype=np.uint8)
    if dataset == "my_colours":
        pixels[..., CLASSES[dataset].index(class_name)] += 120
    elif class_name == "upright bar":
        pixels[:, 20:28] = 230
    else:
        pixels[16:24] = 230
    return Image.fromarray(pixels)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "my" / "tasks").mkdir(parents=True)
    (tmp_path / "my" / "orders").mkdir()
    for dataset, class_names in CLASSES.items():
        for split, count in (("train", 8), ("test", 4)):
            for class_name in class_names:
                folder = tmp_path / "data" / dataset / split / class_name.replace(" ", "_")
                folder.mkdir(parents=True)
                for number in range(count):
                    draw(dataset, class_name, number + 100 * (split == "test")).save(folder / f"{number}.png")
        (tmp_path / "my" / "tasks" / f"{dataset}.toml").write_text(
            f'name = "{dataset}"\ndisplay_name = "{dataset}"\nclass_names = {json.dumps(class_names)}\n'
            'templates = ["a picture of a {}.", "a {}."]\n[data]\nkind = "image_folder"\n'
            f'train = "{dataset}/train"\ntest = "{dataset}/test"\n'
        )
    (tmp_path / "my" / "orders" / "mine.toml").write_text(
        'name = "mine"\ndisplay_name = "Mine"\npretraining_source = "mini_base"\nrecipes = "mini"\ntasks = ["my_colours", "my_bars"]\n'
    )
    return tmp_path


@pytest.mark.slow
def test_own_tasks_go_through_the_whole_pipeline(world: Path, command: Command) -> None:
    mine = ("--order", "mine", "--manifests", world / "my")
    command("gift-generate", "plan", *mine, "--images-per-task", 6, "--steps", 2, "--out", world / "plan.parquet")
    render = ("--plan", world / "plan.parquet", "--out", world / "shards", "--image-format", "png", "--batch-size", 6)
    command("gift-generate", "render", *render)
    assert "every byte claim holds" in command("gift-generate", "verify", "--out", world / "shards").stdout
    command("gift-generate", "show", "--out", world / "shards", "--to", world / "sheet.png")
    assert Image.open(world / "sheet.png").width > 200

    data = ("--data-root", world / "data")
    assert "ok" in command("gift-train", "data", "check", *mine, *data).stdout
    steps = ("--set", "steps=4", "--set", "warmup_steps=1", "--set", "replay.num_images=6")
    for method in ("zero_shot", "gift"):
        trial = steps if method == "gift" else ()
        run = ("--method", method, *mine, *data, "--shards", world / "shards", "--out", world / "runs" / method)
        command("gift-train", "run", *run, *trial)
    report = json.loads(command("gift-train", "report", world / "runs", "--out", world / "report", "--json").stdout)
    assert {run["recipe"] for run in report["runs"]} == {"zero_shot", "gift"}
    accuracy = json.loads((world / "runs" / "gift" / "accuracy_matrix.json").read_text())
    assert accuracy["datasets"] == ["my_colours", "my_bars"]
    assert np.shape(accuracy["matrix"]) == (2, 2)

    checkpoint = world / "runs" / "gift" / "checkpoints" / "task-02-my_bars.safetensors"
    evaluated = command("gift-train", "evaluate", *mine, *data, "--checkpoint", checkpoint, "--json")
    assert json.loads(evaluated.stdout)["accuracy"]["my_bars"] == pytest.approx(accuracy["matrix"][1][1])


def test_a_task_without_its_pictures_is_told_before_training(world: Path, command: Command) -> None:
    (world / "data" / "my_bars" / "train" / "level_bar").rename(world / "data" / "my_bars" / "train" / "level_beam")
    done = command(
        "gift-train", "run", "--method", "finetune", "--order", "mine", "--manifests", world / "my", "--data-root", world / "data",
        "--out", world / "run", expect=2,
    )  # fmt: skip
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "level_b" in done.stderr
    assert not (world / "run").exists()
