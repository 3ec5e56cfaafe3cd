"""A URL where a path of this machine should stand is refused by every command, before anything is read or written."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from gift_generate import cli as generate
from gift_shared.options import takes_path
from gift_train import cli as train

PROGRAMS = {"gift-generate": generate, "gift-train": train}
NEEDED = {  # what else a command must be given before its paths are looked at
    "submit": ("--", "render"), "table": ("1",), "validate": ("x",), "import": ("x", "--order", "mini"),
    "watch": ("x",), "report": ("x",), "parity": ("x",), "push": ("owner/name",), "export": ("x",),
    "score": ("--clip", "mini"),
}  # fmt: skip


def path_options() -> Iterator[tuple[str, str, str]]:
    """(program, command, flag) of every option that is a path."""
    for program, module in PROGRAMS.items():
        commands = dict(typer.main.get_command(module.app).commands)
        commands |= {f"data {name}": command for name, command in getattr(commands.pop("data", None), "commands", {}).items()}
        for name, command in commands.items():
            hints = inspect.signature(command.callback).parameters
            for parameter in command.params:
                if parameter.name in hints and takes_path(hints[parameter.name].annotation):
                    yield program, name, parameter.opts[0]


OPTIONS = [option for option in path_options() if option[2].startswith("--")]


def test_these_are_options_of_both_programs() -> None:
    assert {("gift-generate", name, "--out") for name in ("plan", "render", "verify", "status", "show", "import")} <= set(OPTIONS)
    assert {("gift-train", "run", "--out"), ("gift-train", "report", "--out"), ("gift-train", "data pack", "--out")} <= set(OPTIONS)
    assert not [option for option in OPTIONS if option[2] == "--shards"]  # shards are read by URL


@pytest.mark.parametrize(("program", "command", "flag"), OPTIONS, ids=lambda part: part)
def test_a_url_is_refused(program: str, command: str, flag: str, monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    needed = NEEDED.get(command, ())
    others = () if flag == "--out" else ("--out", "x")
    takes_out = (program, command, "--out") in OPTIONS
    words = [*command.split(), flag, "s3://bucket/x", *(others if takes_out else ()), *needed]
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[program].main()
    assert stop.value.code == 2
    expected = f"error: {flag} s3://bucket/x is a URL; expected a path on this machine or on storage that is mounted here.\n"
    assert capsys.readouterr().err == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["https://host/shards", "file:///tmp/x"])
def test_a_command_that_is_submitted_is_refused_too(url: str, monkeypatch, capsys) -> None:
    words = ["submit", "--executor", "local", "--", "render", "--plan", "p.parquet", "--out", url]
    monkeypatch.setattr(sys, "argv", ["gift-generate", *words])
    with pytest.raises(SystemExit) as stop:
        generate.main()
    assert stop.value.code == 2
    assert "--out " + url.replace("///", "//") + " is a URL" in capsys.readouterr().err
