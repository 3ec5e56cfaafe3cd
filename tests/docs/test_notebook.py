"""The Python blocks of the page on notebooks are run in order, beside a run and its shards in the world that tests draw."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from gift_train.cli import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "notebook.md"
TESTED = re.compile(r"^<!-- tested in Python -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY = re.compile(r"^```python\n", re.MULTILINE)
DRAWN = runpy.run_path(str(ROOT / "tests/train/running/conftest.py"))  # how a world of seconds is drawn


@pytest.fixture(scope="module")
def beside_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `shards` and `runs/gift` in it."""
    root = tmp_path_factory.mktemp("notebook")
    DRAWN["draw_task"](root, "colours", DRAWN["COLOURS"], DRAWN["colour_picture"], 1)
    DRAWN["draw_task"](root, "stripes", DRAWN["ANGLES"], DRAWN["stripe_picture"], 2)
    DRAWN["toml"](root / "manifests/tasks/base.toml", {"name": "base", "display_name": "B", "class_names": ["fox"], "templates": ["a {}."]})
    order = {"name": "pair", "display_name": "Pair", "pretraining_source": "base", "tasks": ["colours", "stripes"], "recipes": "mini"}
    DRAWN["toml"](root / "manifests/orders/pair.toml", order)
    DRAWN["write_shards"](root / "shards", ("colours", "stripes"))
    DRAWN["write_model"](root / "model")
    small = [word for setting in ("steps=4", "warmup_steps=1", "log_every=1", "replay.num_images=10") for word in ("--set", setting)]
    places = [f"--{name}={root / name}" for name in ("manifests", "model", "shards")] + [f"--data-root={root / 'data'}"]
    words = ["run", "--method=gift", "--order=pair", "--device=cpu", *places, *small, f"--out={root / 'runs/gift'}"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["gift-train", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return root


def test_the_blocks_run_one_after_another_as_written(
    beside_a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = TESTED.findall(page)
    assert len(blocks) == len(ANY.findall(page)) == 5
    monkeypatch.chdir(beside_a_run)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    told = capsys.readouterr().out
    assert "<gift, pair, seed 42: 2 of 2 tasks, runs/gift>" in told
    assert "zero-shot" in told
    assert "a red square. (16, 16)" in told
    assert (beside_a_run / "losses.png").stat().st_size > 1000
    assert names["found"].probabilities.shape == (1, 2)
    assert 0 < names["shift"] < 1.001
