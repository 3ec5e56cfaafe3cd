"""Which version this is: of the distribution, of the checkout it runs from, and of the libraries that decide numbers."""

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "gift-cl"


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those of the packages that are installed, from their metadata: none is imported."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout this code runs from, with `+changes` if files differ; None for an installed wheel."""
    file = Path(__file__).resolve()
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)  # a wheel may lie within somebody's checkout of something else
        commit = _git(file.parent, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(file.parent, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None


def version_text(program: str, packages: Sequence[str]) -> str:
    """What `--version` prints: a line with the program and its version, then the commit where one is known, Python and the packages."""
    lines = [f"{program} {installed_versions([DISTRIBUTION]).get(DISTRIBUTION, 'of unknown version')}"]
    commit = git_commit()
    lines += [] if commit is None else [f"commit {commit}"]
    lines += [f"Python {platform.python_version()}"]
    return "\n".join(lines + [f"{name} {version}" for name, version in installed_versions(packages).items()])


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
