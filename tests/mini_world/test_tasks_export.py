"""The mini world's pictures: deterministic, whole, and in agreement with the manifests."""

import subprocess
import sys
import tomllib
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from gift_mini.drawing import draw_web, task_picture
from gift_mini.stamps import CLASSES
from gift_mini.tasks import DATASETS, export_tasks, pictures, slug


def manifest(task):
    return tomllib.loads((files("gift_manifests") / "tasks" / f"{task}.toml").read_text(encoding="utf-8"))


def bytes_below(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


def test_two_exports_are_the_same_byte_for_byte(tmp_path):
    for name in ("one", "two"):
        export_tasks(tmp_path / name, ["mini_digits"])
    first = bytes_below(tmp_path / "one")
    assert len(first) == 1797
    assert first == bytes_below(tmp_path / "two")


def test_a_task_that_is_there_is_left_alone_and_a_half_written_one_is_redrawn(tmp_path):
    (tmp_path / "mini_flags").mkdir()
    (tmp_path / ".mini_textures.partial" / "train" / "striped").mkdir(parents=True)
    (tmp_path / ".mini_textures.partial" / "train" / "striped" / "9999.png").write_bytes(b"cut short")
    export_tasks(tmp_path, ["mini_flags", "mini_textures"])
    assert list((tmp_path / "mini_flags").iterdir()) == []
    assert not (tmp_path / "mini_textures" / "train" / "striped" / "9999.png").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mini_flags", "mini_textures"]


def test_an_unknown_dataset_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"mini_clocks.*mini_shapes, mini_digits"):
        export_tasks(tmp_path, ["mini_clocks"])


@pytest.mark.parametrize("task", CLASSES)
def test_manifest_and_drawing_name_the_same_classes_in_the_same_order(task):
    assert tuple(manifest(task)["class_names"]) == CLASSES[task]
    assert len({slug(name) for name in CLASSES[task]}) == len(CLASSES[task])
    assert all(template.count("{}") == 1 for template in manifest(task)["templates"])


@pytest.mark.parametrize("task", DATASETS)
def test_manifest_counts_are_what_the_export_writes(task):
    splits = Counter(split for split, *_ in pictures(task))
    assert manifest(task)["counts"] == dict(splits)
    data = manifest(task)["data"]
    assert (data["kind"], data["train"], data["test"]) == ("image_folder", f"{task}/train", f"{task}/test")


@pytest.mark.parametrize("order", ["mini", "mini-2"])
def test_orders_hold_every_task_once(order):
    table = tomllib.loads((files("gift_manifests") / "orders" / f"{order}.toml").read_text(encoding="utf-8"))
    assert sorted(table["tasks"]) == sorted(DATASETS)
    assert table["pretraining_source"] == "mini_base"


def test_classes_of_a_task_look_different():
    """Mean pictures over many seeds: no two classes of a task share one, as they would if a font lacked their characters."""
    for task, names in CLASSES.items():
        means = [np.mean([np.asarray(draw_web(task, name, seed), float) for seed in range(24)], axis=0) for name in names]
        means = [(mean - mean.mean()) / mean.std() for mean in means]
        closest = min(np.abs(a - b).mean() for index, a in enumerate(means) for b in means[:index])
        assert closest > 0.1, task


def test_web_drawing_depends_on_its_seed_alone():
    assert draw_web("mini_base", "heart", 3).tobytes() == draw_web("mini_base", "heart", 3).tobytes()
    assert draw_web("mini_base", "heart", 3).tobytes() != draw_web("mini_base", "heart", 4).tobytes()
    assert draw_web("mini_base", "heart", 3).size == (32, 32)


def test_base_classes_have_no_task_style():
    with pytest.raises(ValueError, match="mini_base has no drawn task style"):
        task_picture(np.random.default_rng(0), "mini_base", "heart")


def test_the_module_runs_as_a_command(tmp_path):
    subprocess.run([sys.executable, "-m", "gift_mini.tasks", "--out", str(tmp_path), "--datasets", "mini_textures"], check=True)
    file = tmp_path / "mini_textures" / "train" / "striped" / "0000.png"
    assert Image.open(file).size == (32, 32)


def test_importing_the_package_loads_no_torch():
    code = "import sys, gift_mini.drawing, gift_mini.tasks, gift_mini.locations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
