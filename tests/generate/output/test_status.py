"""How far a render is, and what its workers say of themselves."""

import json
import os
from pathlib import Path

import pytest


def test_status_of_a_half_rendered_folder_counts_what_is_left(command, rendered: Path) -> None:
    (rendered / "index.parquet").unlink()
    for name in ("cats-00001", "cats-00002", "cars-00002"):
        (rendered / "shards" / f"{name}.parquet").unlink()
    result = command("status", "--out", rendered)
    assert "shards     3 of 6 done" in result.out
    assert "images     12 of 20 settled (12 ok, 0 black, 0 flagged, 0 failed), 8 remaining" in result.out
    assert "index      not yet" in result.out


def test_status_as_json_is_for_programs(command, rendered: Path) -> None:
    state = json.loads(command("status", "--out", rendered, "--json").out)
    assert (state["shards_done"], state["remaining"], state["has_index"]) == (6, 0, True)
    assert state["statuses"] == {"ok": 20}
    assert state["shortfall"] == {"cats": 0, "cars": 0}


def events(out: Path) -> list[dict]:
    return [json.loads(line) for path in sorted((out / "workers").glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_a_worker_logs_what_it_did_as_json_lines(rendered: Path) -> None:
    told = events(rendered)
    assert [event["event"] for event in told] == ["started", *["shard"] * 6, "ended"]
    assert told[0]["settings"]["model"] == "flat-color"
    assert (told[0]["shards"], told[0]["shards_left"]) == (6, 6)
    assert [event["name"] for event in told[1:-1]] == [f"{task}-0000{number}" for task in ("cats", "cars") for number in range(3)]
    assert sum(event["images"] for event in told[1:-1]) == sum(event["ok"] for event in told[1:-1]) == 20
    assert all(event["seconds"] > 0 for event in told[1:-1])


def test_a_worker_that_failed_is_told_with_its_reason(command, plan: Path, tmp_path: Path) -> None:
    """A caption that the control's renderer cannot draw: found out while rendering."""
    out = tmp_path / "out"
    result = command("render", "--plan", plan, "--out", out, "--model", "mini-drawings")
    assert result.code == 2
    message = result.err.splitlines()[-1].removeprefix("error: ")
    (worker,) = json.loads(command("status", "--out", out, "--json").out)["workers"]
    assert (worker["state"], worker["message"]) == ("failed", message)
    assert f"failed     rank 0: {message}" in command("status", "--out", out).out
    assert (events(out)[-1]["event"], events(out)[-1]["message"]) == ("failed", message)
    assert list((out / "claims").iterdir()) == []


def test_a_log_cut_short_by_a_kill_is_passed_over(command, rendered: Path) -> None:
    (path,) = (rendered / "workers").glob("*.jsonl")
    os.truncate(path, path.stat().st_size - 5)
    result = command("plan", "--order", "mini", "--images-per-task", 1, "--out", rendered.parent / "p.parquet", "--measured", rendered)
    assert "images/s; divide by the number of workers" in result.out


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"worker": "../../etc/passwd"}', b"\xff\xfe"])
def test_a_damaged_record_of_a_worker_is_passed_over(command, rendered: Path, content: bytes) -> None:
    (rendered / "workers" / "00009-x.json").write_bytes(content)
    state = json.loads(command("status", "--out", rendered, "--json").out)
    assert [worker["rank"] for worker in state["workers"]] == [0]


def test_status_of_no_output_folder_is_one_line(command, tmp_path: Path) -> None:
    result = command("status", "--out", tmp_path)
    assert result.code == 2
    assert "so it is no output folder of gift-generate" in result.err
