"""Both stages through their command lines, as a user types them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def command() -> Command:
    """Run a program of this environment (`gift-generate`, `python` ...) on one thread; another exit code than `expect` fails the test."""

    def run(program: str, *arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        line = [str(Path(sys.executable).parent / program), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # tests may run several programs side by side
        done = subprocess.run(line, capture_output=True, text=True, timeout=1800, check=False, env=environment)
        assert done.returncode == expect, f"{' '.join(line)}\n{done.stdout}\n{done.stderr}"
        return done

    return run
