"""The command that checks a machine with a GPU runs here too, every part of it small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def gpu_check(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "benchmarks.gpu_check", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_and_what_is_done_is_not_done_again(tmp_path):
    out = tmp_path / "found.json"
    first = gpu_check("--device", "cpu", "--quick", "--out", out)
    assert first.returncode == 0, first.stdout + first.stderr
    parts = json.loads(out.read_text())["parts"]
    assert len(parts) == 11
    assert {part["state"] for part in parts.values()} == {"done"}
    again = gpu_check("--device", "cpu", "--quick", "--out", out)
    assert again.stdout.count("done before") == 11


def test_a_part_that_had_no_time_is_told_and_not_taken_for_right(tmp_path):
    cut = gpu_check("--device", "cpu", "--quick", "--only", "golden", "--seconds", 1, "--out", tmp_path / "found.json")
    assert cut.returncode == 1
    assert "NOT SHOWN TO BE RIGHT: golden." in cut.stdout


def test_a_device_that_is_not_there_is_one_line():
    missing = gpu_check("--device", "cuda:77")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: device 'cuda:77' cannot be used here")
    assert missing.stderr.count("\n") == 1
