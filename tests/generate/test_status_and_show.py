"""What people look at: how far a render is, and what its pictures are."""

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)


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


def test_watch_stays_until_the_folder_is_complete(command, workers, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("render", "--plan", plan, "--out", out, *FLAT).code == 0
    (out / "shards" / "cats-00001.parquet").unlink()
    assert "index      not yet" in command("status", "--out", out).out  # the one that is there is of the shards before
    watching = workers.start("status", "--out", out, "--watch")
    time.sleep(1)
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
    time.sleep(0.5)
    assert workers.poll(watching) is None
    assert workers.log == f"Nothing has begun in {out} yet: waiting for a worker that has loaded its model.\n"
    assert command("render", "--plan", plan, "--out", out, *FLAT).code == 0
    assert workers.wait(watching) == [0]
    assert "index      written" in workers.log


def test_status_of_no_output_folder_is_one_line(command, tmp_path: Path) -> None:
    result = command("status", "--out", tmp_path)
    assert result.code == 2
    assert "so it is no output folder of gift-generate" in result.err


def colors_of(sheet: Path) -> set[tuple[int, int, int]]:
    with Image.open(sheet) as image:
        return {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 24)}


def test_a_sheet_shows_the_pictures_and_their_captions(command, rendered: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = command("show", "--out", rendered, "--to", sheet, "--pictures", 3)
    assert result.code == 0, result.err
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.width == 3 * 154 + 10
    assert len(colors_of(sheet)) > 20  # flat pictures, and the greys of letters


def test_a_sheet_by_class_has_a_row_for_every_class_that_fits(command, rendered: Path, tmp_path: Path) -> None:
    result = command("show", "--out", rendered, "--to", tmp_path / "s.png", "--by", "class", "--groups", 2)
    assert "more had no room, --groups or --only show them" in result.out
    assert command("show", "--out", rendered, "--to", tmp_path / "s.png", "--by", "class", "--only", "thing 3").code == 0


def test_captions_of_any_script_and_length_fit(command, manifests: Path, tmp_path: Path) -> None:
    web = tmp_path / "web.txt"
    web.write_text(
        "Ωμέγα и кириллица\n" + "x" * 400 + "\nשלום <script>alert(1)</script> 🐈\n" + "many words " * 60 + "\n", encoding="utf-8"
    )
    plan, out = tmp_path / "p.parquet", tmp_path / "out"
    command(
        "plan", "--out", plan, "--order", "tiny", "--images-per-task", 8, "--caption-file", web, "--class-name-weight", 0,
        "--manifests", manifests,
    )  # fmt: skip
    assert command("render", "--plan", plan, "--out", out, *FLAT).code == 0
    assert command("show", "--out", out, "--to", tmp_path / "s.png").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "classes"), "Unknown grouping 'classes'. Did you mean 'class'?"),
        (("--only", "cat"), "Unknown task 'cat'. Did you mean 'cats'?"),
        (("--pictures", 0), "at least one picture"),
    ],
)
def test_wrong_names_are_one_line(command, rendered: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    result = command("show", "--out", rendered, "--to", tmp_path / "s.png", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "s.png").exists()


def test_nothing_to_show_is_one_line(command, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("render", "--plan", plan, "--out", out, *FLAT, "--rank", 1, "--world-size", 9).code == 0
    for path in (out / "shards").glob("*"):
        path.unlink()
    result = command("show", "--out", out, "--to", tmp_path / "s.png")
    assert result.code == 2
    assert "holds no usable image to show yet" in result.err


def test_a_shard_edited_after_indexing_is_not_shown(command, rendered: Path, tmp_path: Path) -> None:
    path = rendered / "shards" / "cats-00000.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 255
    path.write_bytes(content)
    result = command("show", "--out", rendered, "--to", tmp_path / "s.png")
    assert result.code == 2
    assert "was changed after indexing" in result.err
