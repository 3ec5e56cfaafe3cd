"""The list of flags is frozen: a new knob needs a reason, and a change here to say so."""

import typer.main

from gift_generate.cli import app

FLAGS = {
    "plan": {
        "--out", "--order", "--kind", "--images-per-task", "--images-per-class", "--dataset", "--seed", "--seeding", "--draws-per-task",
        "--pretraining-only", "--caption-file", "--class-name-weight", "--guidance-scale", "--steps",
        "--images-per-shard", "--manifests", "--images-per-second", "--measured",
    },
    "render": {
        "--out", "--plan", "--model", "--device", "--dtype", "--batch-size", "--threads", "--scheduler", "--height", "--width",
        "--generator-device",
        "--max-attempts", "--image-format", "--jpeg-quality", "--rank", "--world-size", "--wait",
        "--compile", "--vae-slices", "--guidance-until", "--feature-interval",
    },
    "submit": {
        "words", "--executor", "--partition", "--time", "--jobs", "--nodes", "--processes", "--array-parallelism", "--gpus-per-node",
        "--cpus-per-task", "--mem", "--setup", "--slurm", "--notice", "--restarts", "--logs", "--wait",
    },
    "verify": {"--out"},
    "status": {"--out", "--json", "--watch"},
    "show": {"--out", "--to", "--html", "--by", "--only", "--pictures", "--groups"},
    "import": {
        "folder", "--out", "--order", "--seed", "--guidance-scale", "--steps", "--images-per-task", "--images-per-shard", "--manifests",
    },
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
