"""Both stages through their command lines, as a user types them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command() -> Command:
    """Run `gift-generate` or `gift-train` of this environment; exit codes other than `expect` fail the test with all output."""

    def run(program: str, *arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        line = [str(Path(sys.executable).parent / program), *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == expect, f"{' '.join(line)}\n{done.stdout}\n{done.stderr}"
        return done

    return run
