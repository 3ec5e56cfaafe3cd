"""The lower bounds of pyproject.toml as pip's constraints: `python tests/lowest_versions.py`; with --check, whether they are installed.

`make test-lowest` lays these versions over the usual environment and runs tests with them, so that a bound is a version that was tried.
"""

import argparse
import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
AS_INSTALLED = {"torch", "torchvision"}  # gigabytes for another patch release: any of the bound's series is taken for it
TOOLS = {"ruff", "mypy"}  # they check the code and run none of it


def requirements() -> Iterator[Requirement]:
    """All that is declared, extras included; the project's own extras within an extra left out."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    for text in [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) != canonicalize_name(project["name"]):
            yield requirement


def lowest(requirement: Requirement) -> SpecifierSet:
    """The version that a bound `>=` names, as the only one allowed. Raises ValueError for a requirement without exactly one bound."""
    (bound,) = requirement.specifier
    if bound.operator != ">=":
        raise ValueError(f"{requirement}: expected one lower bound, such as {requirement.name}>=1.0")
    return SpecifierSet(f"=={bound.version}.*" if requirement.name in AS_INSTALLED else f"=={bound.version}")


def main() -> None:
    """Print a constraint a line, or exit with a line on each package that is installed in another version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what is installed instead")
    is_check = parser.parse_args().check
    pins = {requirement.name: lowest(requirement) for requirement in requirements() if requirement.name not in TOOLS}
    if not is_check:
        print("\n".join(f"{name}{pin}" for name, pin in sorted(pins.items())))
        return
    installed = {name: importlib.metadata.version(name) for name in pins}
    wrong = [f"{name} {installed[name]} is installed, not {pin}" for name, pin in sorted(pins.items()) if installed[name] not in pin]
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
