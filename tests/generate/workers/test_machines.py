"""Machines that may make other last bits are told: to a worker at its start, and in `status`."""

import json
import os
from pathlib import Path

import pytest
import torch

from gift_generate.workers.machines import kinds_lines, machine_kinds, other_machine_warning

OLD = {"model": "mini", "device": "NVIDIA A100", "instruction_set": "AVX2", "torch": "2.14.0"}
NEW = {"model": "./mini", "device": "NVIDIA H100", "instruction_set": "AVX512", "torch": "2.14.0"}


def test_what_differs_is_named_and_how_the_model_was_named_is_no_difference() -> None:
    told = other_machine_warning(OLD, NEW)
    assert told is not None
    assert "another machine: device NVIDIA A100 there, NVIDIA H100 here; instruction_set AVX2 there, AVX512 here. An image" in told
    assert other_machine_warning(OLD, OLD | {"model": "/models/mini"}) is None


@pytest.mark.parametrize("first", [{}, {"torch": "2.14.0"}])
def test_what_an_earlier_version_did_not_record_says_nothing(first: dict[str, str]) -> None:
    assert other_machine_warning(first, NEW) is None
    assert kinds_lines(machine_kinds([(0, first), (1, NEW)])) == []


def test_status_names_the_kinds_and_who_is_of_which() -> None:
    kinds = machine_kinds([(0, OLD), (1, NEW), (2, OLD), (2, OLD), (3, {})])
    assert kinds_lines(kinds) == [
        "machines   2 kinds: an image may differ in its last bits between them",
        "           device NVIDIA A100, instruction_set AVX2 (rank 0, 2)",
        "           device NVIDIA H100, instruction_set AVX512 (rank 1)",
    ]


def test_another_processor_is_told_to_the_next_worker_and_in_status(command, tmp_path: Path) -> None:
    """The files of a folder that was begun on one with AVX2 alone."""
    plan, out = tmp_path / "p.parquet", tmp_path / "out"
    sizes = ("--images-per-task", 1, "--images-per-shard", 1, "--steps", 1)
    assert command("plan", "--out", plan, "--order", "mini", *sizes).code == 0
    first = command("render", "--plan", plan, "--out", out, "--height", 32, "--width", 32)
    assert "another machine" not in first.err
    here = json.loads((out / "render.json").read_text())["machine"]
    assert here["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    for path in (out / "render.json", *(out / "workers").glob("*.json")):
        path.write_text(path.read_text().replace(here["instruction_set"], "OTHER"))
    os.replace(path, path.with_name(f"00000-elsewhere-{'0' * 8}-1-1.json"))  # it would be this process's own
    next((out / "shards").glob("*.parquet")).unlink()
    result = command("render", "--out", out, "--height", 32, "--width", 32)
    assert result.code == 0
    told = f"warning: this folder was begun on another machine: instruction_set OTHER there, {here['instruction_set']} here. "
    assert result.err.count(told) == 1
    assert "machines   2 kinds: an image may differ" in command("status", "--out", out).out
    kinds = json.loads(command("status", "--out", out, "--json").out)["machines"]
    assert {kind["machine"]["instruction_set"] for kind in kinds} == {"OTHER", here["instruction_set"]}
