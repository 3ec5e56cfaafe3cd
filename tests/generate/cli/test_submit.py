"""`gift-generate submit` without a SLURM: what it refuses, and its jobs as processes of this machine."""

import pytest

LOCAL = ("submit", "--executor", "local")
FLAT = ("--model", "flat-color", "--height", "16", "--width", "16")


@pytest.fixture
def in_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_local_jobs_render_what_one_process_does(command, plan, rendered, in_folder):
    out = in_folder / "shards"
    result = command(*LOCAL, "--jobs", "2", "--wait", "--", "render", "--plan", plan, "--out", out, *FLAT)
    assert result.code == 0, result.err
    assert result.out.startswith("submitted  2 jobs: ")
    assert f"gift-generate status --out {out} --watch" in result.out
    assert "squeue" not in result.out
    assert "(2 of 2)" in result.out
    assert (out / "index.parquet").read_bytes() == (rendered / "index.parquet").read_bytes()
    for tar in (rendered / "shards").glob("*.tar"):
        assert (out / "shards" / tar.name).read_bytes() == tar.read_bytes()


def test_who_waits_for_a_job_that_fails_is_told_why(command, plan, in_folder):
    result = command(*LOCAL, "--wait", "--", "render", "--plan", plan, "--out", "shards", "--image-format", "bmp")
    assert result.code == 1
    assert "failed" in result.out
    assert "bmp" in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("verify", "--out", "x"), "After the options and -- comes the command that the jobs run: render; found 'verify'."),
        (("render", "--out", "x", "--batchsize", "3"), "No such option: --batchsize"),
        (("render", "--out", "x", "--batch-size", "0"), "--batch-size must be at least 1, or auto; found 0."),
        (("render", "--out", "x", "--plan", "missing.parquet"), "missing.parquet"),
        (("render", "--out", "x"), "x has no plan.parquet to go on with: give --plan."),
        (("render", "--out", "x", "--plan", "plan.parquet", "--rank", "0", "--world-size", "2"), "leave them out"),
    ],
)
def test_what_would_fail_in_the_job_is_told_before(command, plan, in_folder, words, message):
    result = command(*LOCAL, "--", *words)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert not (in_folder / "jobs").exists()


def test_more_workers_than_shards_are_refused(command, plan, in_folder):
    result = command(*LOCAL, "--jobs", "4", "--processes", "2", "--", "render", "--plan", plan, "--out", "x")
    assert result.code == 2
    assert "The plan has 6 shards, so 8 workers are more than can have one each" in result.err


def test_the_workers_of_each_job_count(command, plan, in_folder):
    words = ("render", "--plan", plan, "--out", "x", "--processes", "4")
    assert "so 8 workers are more than can have one each" in command(*LOCAL, "--jobs", "2", "--", *words).err
    words = ("render", "--plan", plan, "--out", "x", "--preview", "1")
    assert "render --preview is the work of one process: give --jobs 1 alone." in command(*LOCAL, "--jobs", "2", "--", *words).err


def test_without_slurm_one_line_says_so(command, plan, in_folder, monkeypatch):
    monkeypatch.setenv("PATH", str(in_folder))
    result = command("submit", "--", "render", "--plan", plan, "--out", "x")
    assert result.code == 2
    assert result.err.startswith("error: There is no SLURM here: sbatch was not found.")
    assert len(result.err.splitlines()) == 1
