"""Every command in README and docs is run, in order, in an empty folder; those that cannot be are checked flag by flag."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from gift_generate.cli import app as generate_app
from gift_train.cli import app as train_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
APPS = {"gift-generate": generate_app, "gift-train": train_app}
FENCE = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PAIR = re.compile(r'"([^"]+)" as "([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment above it: `tested[, with "X" as "Y", ...]`, `not tested: why`, or `file: path`."""

    mark: str
    language: str
    text: str

    @property
    def script(self) -> str:
        """The commands with the smaller numbers of a test. Every replacement must still have something to replace."""
        text = self.text
        for shown, run in PAIR.findall(self.mark):
            assert shown in text, f"{shown!r} is not in the block any more"
            text = text.replace(shown, run)
        return text


def blocks(page: Path) -> list[Block]:
    return [Block(match["mark"] or "", match["language"], match["text"]) for match in FENCE.finditer(page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- tested" in page.read_text()], ids=lambda page: page.stem)
def test_the_commands_of_a_page_work_as_written(page: Path, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    for block in blocks(page):
        if block.mark.startswith("file: "):
            file = tmp_path / block.mark.removeprefix("file: ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.language == "bash" and block.mark.startswith("tested"):
            line = ["bash", "-euo", "pipefail", "-c", block.script]
            done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
            assert done.returncode == 0, f"{page.name}:\n{block.script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_every_block_of_commands_is_tested_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash":
            assert re.match(r"tested$|tested, with \"|not tested: .{10,}", block.mark), f"{page.name}:\n{block.text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_flags_that_are_shown_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language != "bash":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                if word in APPS:
                    check_flags(word, words[place + 1 :], f"{page.name}: {line}")


def check_flags(program: str, words: list[str], where: str) -> None:
    if "--" in words:  # submit: what follows is a command of the same program
        check_flags(program, words[words.index("--") + 1 :], where)
        words = words[: words.index("--")]
    command = typer.main.get_command(APPS[program])
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, where
        command, words = command.commands[words[0]], words[1:]
    known = {flag for parameter in command.params for flag in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{word} in {where}"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
