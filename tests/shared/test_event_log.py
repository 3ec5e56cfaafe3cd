"""Logs for programs."""

import json
from pathlib import Path

from gift_shared.event_log import EventLog, read_events


def test_every_line_says_when_where_and_what(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log.jsonl")
    log.write("shard", name="a-00001", images=1000)
    log.write("ended")
    first, last = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["event"], first["name"], first["images"]) == ("shard", "a-00001", 1000)
    assert last["event"] == "ended"
    assert first["time"] <= last["time"]
    assert first["time"].endswith("+00:00")
    assert {"host", "process"} <= first.keys()


def test_two_processes_may_append_to_one_log(tmp_path: Path) -> None:
    EventLog(tmp_path / "log.jsonl").write("started")
    EventLog(tmp_path / "log.jsonl").write("ended")
    assert [event["event"] for event in read_events(tmp_path / "log.jsonl")] == ["started", "ended"]


def test_a_line_cut_short_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log.jsonl")
    log.write("started")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"time": "2026-0')
    assert [event["event"] for event in read_events(tmp_path / "log.jsonl")] == ["started"]
    log.write("resumed")
    log.write("ended")
    assert [event["event"] for event in read_events(tmp_path / "log.jsonl")] == ["started", "resumed", "ended"]
    assert (tmp_path / "log.jsonl").read_bytes().count(b"\n") == 4
