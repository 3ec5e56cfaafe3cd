"""What README and docs/speed.md say of speed is what the results say, and the command that measures it again goes on where it stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def readme(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme

    return readme


def test_every_number_that_names_its_line_is_that_of_the_results(readme, capsys):
    assert readme.report_claims() == 0, capsys.readouterr().out
    claims = list(readme.claims_of_pages())
    assert {claim.page for claim in claims} == {"README.md", "docs/speed.md"}
    assert len(claims) > 30


@pytest.mark.parametrize(
    ("said", "found", "holds"),
    [
        ("3.3", 3.325, True),
        ("3.3", 3.36, False),
        ("29", 29.07, True),
        ("1,200", 1203.0, True),
        ("1,200", 1290.0, False),
        ("5", None, False),
    ],
)
def test_a_number_holds_as_far_as_the_page_rounds(readme, said, found, holds):
    assert readme.Claim(page="README.md", said=said, line="start: a step", found=found).holds is holds


def test_a_line_that_was_measured_again_goes_before_the_benchmarks_own(readme, tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    (tmp_path / "start.json").write_text(json.dumps({"findings": [{"what": "a", "value": 1.0}, {"what": "b", "value": 2.0}]}))
    (tmp_path / "readme.json").write_text(json.dumps({"findings": [{"what": "start: a", "value": 3.0}]}))
    assert [readme.result(f"start: {what}") for what in ("a", "b", "c")] == [3.0, 2.0, None]


def test_parts_that_are_done_are_kept_for_the_same_code_and_number_of_runs(readme, tmp_path):
    out = tmp_path / "found.json"
    record = readme.opened(out, 3, is_quick=False, is_fresh=False)
    record["parts"]["start"] = {"seconds": 1.0, "findings": [{"what": "start: a", "value": 1.0}]}
    readme.write(out, record)
    again = readme.opened(out, 3, is_quick=False, is_fresh=False)
    assert again["parts"] == record["parts"]
    assert again["findings"] == [{"what": "start: a", "value": 1.0}]
    assert readme.opened(out, 4, is_quick=False, is_fresh=False)["parts"] == {}
    assert readme.opened(out, 3, is_quick=False, is_fresh=True)["parts"] == {}


def test_a_part_that_fails_leaves_no_line(readme, capfd):
    assert readme.run_part(readme.Part(name="no_such_benchmark"), 1, is_quick=True) == []
    assert "no_such_benchmark.py" in capfd.readouterr().err


@pytest.mark.slow
def test_every_part_runs_small_and_is_not_done_again(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.readme", "--quick", "--out", str(out)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    findings = json.loads(out.read_text())["findings"]
    assert {finding["what"].partition(": ")[0] for finding in findings} == {
        "shard_writer", "start", "streaming", "evaluation", "generation", "training_step",
    }  # fmt: skip
    assert all(finding["low"] <= finding["value"] <= finding["high"] for finding in findings)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.stdout.count("done before") == 6
