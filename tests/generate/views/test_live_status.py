"""`status --watch`: one view of all workers, until the folder is complete."""

import time
from pathlib import Path

FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)


def wait_for_lines(workers) -> None:
    """Until something was printed, and what is printed at once with it."""
    end = time.monotonic() + 30
    while not workers.log and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)


def test_watch_stays_until_the_folder_is_complete(command, workers, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("render", "--plan", plan, "--out", out, *FLAT).code == 0
    (out / "shards" / "cats-00001.parquet").unlink()
    assert "index      not yet" in command("status", "--out", out).out  # the one that is there is of the shards before
    watching = workers.start("status", "--out", out, "--watch")
    wait_for_lines(workers)
    assert workers.poll(watching) is None
    assert command("render", "--out", out, *FLAT).code == 0
    assert workers.wait(watching) == [0]
    first, last, nothing = workers.log.split("\n\n")  # no terminal: the whole view now and then, not cut to a width, and at the end
    assert "settled (16 ok, 0 black, 0 flagged, 0 failed), 4 remaining" in first
    assert "index      written" in last
    assert nothing == ""
    assert "--json for programs" in command("status", "--out", out, "--watch", "--json").err


def test_watch_waits_for_a_folder_in_which_nothing_has_begun(command, workers, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    watching = workers.start("status", "--out", out, "--watch")
    wait_for_lines(workers)
    assert workers.poll(watching) is None
    assert workers.log == f"Nothing has begun in {out} yet: waiting for a worker that has loaded its model.\n"
    assert command("render", "--plan", plan, "--out", out, *FLAT).code == 0
    assert workers.wait(watching) == [0]
    assert "index      written" in workers.log
