"""The list of flags is frozen: a new knob needs a reason, and a change here to say so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from gift_generate.cli import app
from gift_shared.parquet_files import read_plan

FLAGS = {
    "plan": {
        "--out", "--order", "--kind", "--images-per-task", "--images-per-class", "--dataset", "--seed", "--seeding", "--draws-per-task",
        "--pretraining-only", "--templates", "--class-counts", "--images", "--from", "--caption-file", "--caption-column", "--sampling",
        "--dedup", "--class-name-weight", "--model-family", "--guidance-scale", "--steps", "--images-per-shard", "--workers",
        "--minutes-per-shard",
        "--manifests", "--images-per-second", "--measured",
    },
    "adapt": {
        "--out", "--task", "--order", "--data-root", "--manifests", "--model", "--revision", "--variant", "--model-config", "--rank",
        "--text-encoder", "--steps", "--batch-size", "--learning-rate", "--caption-dropout", "--seed", "--height", "--width", "--device",
        "--mixed-precision", "--threads", "--gradient-checkpointing", "--checkpoint-every",
    },
    "render": {
        "--out", "--plan", "--model", "--device", "--dtype", "--batch-size", "--threads", "--scheduler", "--height", "--width",
        "--generator-device",
        "--max-attempts", "--image-format", "--jpeg-quality", "--processes", "--rank", "--world-size", "--wait", "--retry",
        "--preview", "--preview-to",
        "--compile", "--vae-slices", "--guidance-until", "--feature-interval",
        "--revision", "--variant", "--model-config", "--vae", "--lora", "--negative-prompt", "--safety-checker",
    },
    "submit": {
        "words", "--executor", "--partition", "--time", "--jobs", "--nodes", "--processes", "--array-parallelism", "--gpus-per-node",
        "--cpus-per-task", "--mem", "--setup", "--slurm", "--notice", "--restarts", "--logs", "--wait",
    },
    "verify": {"--out"},
    "status": {"--out", "--json", "--watch"},
    "show": {"--out", "--to", "--html", "--by", "--only", "--pictures", "--groups", "--sort-by", "--scores"},
    "score": {
        "--out", "--clip", "--pretrained", "--quick-gelu", "--name", "--device", "--precision", "--batch-size",
        "--num-workers", "--rank", "--world-size",
    },
    "import": {
        "folder", "--out", "--order", "--seed", "--guidance-scale", "--steps", "--images-per-task", "--images-per-shard", "--manifests",
    },
    "push": {"name", "--out", "--private", "--revision", "--replace"},
}  # fmt: skip


def test_commands_and_flags_are_these_and_no_others() -> None:
    commands = typer.main.get_command(app).commands
    found = {
        name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands.items()
    }
    assert found == FLAGS


def test_every_command_and_flag_has_a_help_text() -> None:
    for name, command in typer.main.get_command(app).commands.items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params), name


@pytest.mark.parametrize("arguments", [["--out", "x"], ["--out", "x", "--dataset", "mini_shapes"]])
def test_a_plan_is_of_the_mini_order_unless_an_order_or_datasets_are_named(command, tmp_path: Path, monkeypatch, arguments: list) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("plan", "--kind", "pool", "--images-per-class", 1, *arguments)
    assert result.code == 0, result.err
    metadata = read_plan(Path("x"))[1]
    assert metadata["order"] == ("" if "--dataset" in arguments else "mini")
    assert json.loads(metadata["arguments"])["datasets"] == arguments[3:]


def test_the_module_is_the_command(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "gift_generate.cli", "status", "--out", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} has no plan.parquet, so it is no output folder of gift-generate.\n"
