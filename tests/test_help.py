"""`--help` answers at once: nothing heavy is imported before a command runs."""

import subprocess
import sys
import time
from importlib import metadata

import pytest

from gift_shared.version import git_commit

HEAVY = ("torch", "diffusers", "transformers", "open_clip", "torchvision", "numpy", "pyarrow", "PIL", "matplotlib", "webdataset")
SECONDS = 0.5


def program(command_line: str, arguments: str) -> str:
    module = {"gift-generate": "gift_generate.cli", "gift-train": "gift_train.cli"}[command_line]
    return f"import sys; sys.argv = [{command_line!r}, *{arguments.split()!r}]\nfrom {module} import main\nmain()"


@pytest.mark.parametrize("command_line", ["gift-generate", "gift-train"])
def test_help_answers_within_half_a_second(command_line: str) -> None:
    # The best of five: other processes can only make it slower. Processor time of the child, so a busy machine does not count.
    seconds = []
    for _ in range(5):
        measured = "import time, atexit; atexit.register(lambda: print(time.process_time()))\n"
        result = subprocess.run(
            [sys.executable, "-c", measured + program(command_line, "--help")], capture_output=True, text=True, check=True
        )
        assert "Usage" in result.stdout
        seconds.append(float(result.stdout.splitlines()[-1]))
        if seconds[-1] < SECONDS:
            break
        time.sleep(0.5)
    assert min(seconds) < SECONDS


@pytest.mark.parametrize("command_line", ["gift-generate", "gift-train"])
def test_help_imports_nothing_heavy(command_line: str) -> None:
    check = f"import sys, atexit; atexit.register(lambda: print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules))))\n"
    result = subprocess.run([sys.executable, "-c", check + program(command_line, "--help")], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("command_line", ["gift-generate", "gift-train"])
def test_an_unknown_command_is_exit_code_2(command_line: str) -> None:
    result = subprocess.run([sys.executable, "-c", program(command_line, "nonsense")], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "nonsense" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command_line", "libraries"), [("gift-generate", ("torch", "diffusers", "transformers")), ("gift-train", ("torch", "open_clip_torch"))]
)
def test_the_version_is_told_with_those_of_the_libraries_that_decide_numbers(command_line: str, libraries: tuple[str, ...]) -> None:
    check = f"import sys, atexit; atexit.register(lambda: print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules))))\n"
    result = subprocess.run([sys.executable, "-c", check + program(command_line, "--version")], capture_output=True, text=True, check=True)
    first, *others, loaded = result.stdout.splitlines()
    assert first == f"{command_line} {metadata.version('gift-cl')}"
    assert {f"{name} {metadata.version(name)}" for name in libraries} <= set(others)
    assert [line for line in others if line.startswith("commit ")] == ([] if (commit := git_commit()) is None else [f"commit {commit}"])
    assert loaded == "LOADED []"
