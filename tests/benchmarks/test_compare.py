"""What the tools beside the benchmarks call slower, and what they call noise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def line(what: str, value: float, unit: str, **spread: float) -> dict:
    return {"what": what, "value": value, "unit": unit, "target": None, "at_most": False, "verdict": "", **spread}


def compare(folder: Path, old: list[dict], new: list[dict]) -> tuple[int, str]:
    for name, findings in (("old", old), ("new", new)):
        record = {"benchmark": "start", "hardware": {}, "versions": {}, "findings": findings}
        (folder / f"{name}.json").write_text(json.dumps(record))
    command = [sys.executable, BENCHMARKS / "compare.py", folder / "old.json", folder / "new.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (line("a step", 1.0, "s"), line("a step", 1.2, "s"), "SLOWER"),
        (line("ratio", 4.0, "x"), line("ratio", 3.0, "x"), "SLOWER"),
        (line("peak", 4.0, "GB"), line("peak", 5.0, "GB"), "MORE"),
        (line("a step", 1.0, "s"), line("another", 1.0, "s"), "GONE"),
    ],
)
def test_what_became_worse_is_named_and_fails(tmp_path, old, new, word):
    code, out = compare(tmp_path, [old], [new])
    assert code == 1
    assert out.splitlines()[0].endswith(word)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (line("a step", 1.0, "s"), line("a step", 1.05, "s")),
        (line("a step", 1.0, "s", low=0.8, high=1.3), line("a step", 1.2, "s", low=1.1, high=1.4)),
        (line("a step", 1.2, "s"), line("a step", 1.0, "s")),
        (line("pixel difference", 1.0, "of 255"), line("pixel difference", 2.0, "of 255")),
    ],
)
def test_noise_and_what_is_no_time_is_not(tmp_path, old, new):
    assert compare(tmp_path, [old], [new])[0] == 0


def test_lines_of_several_runs_have_their_median_and_spread(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from repeat import spread

    [found] = spread([[line("a step", value, "s")] for value in (3.0, 1.0, 2.0)])
    assert (found["value"], found["low"], found["high"]) == (2.0, 1.0, 3.0)
