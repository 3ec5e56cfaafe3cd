"""What is imported is declared where it is needed, with a lower bound that is tried, and nothing else is."""

import ast
import importlib.metadata
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOWEST = runpy.run_path(str(ROOT / "tests" / "lowest_versions.py"))
TOOLS, lowest, requirements = LOWEST["TOOLS"], LOWEST["lowest"], LOWEST["requirements"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Which folders may import what an extra declares; the base is open to all of them.
FOLDERS = {
    "generate": ["generate", "shared/gift_datasets"],
    "train": ["train", "mini_world/gift_mini", "shared/gift_datasets"],
    "cluster": ["shared"],
    "notebook": ["shared"],
    "remote": ["shared"],
    "test": ["tests", "benchmarks", "mini_world/pretrain"],
}
# Needed without an import of ours, or imported as a part of something declared.
NOT_IMPORTED = {
    "generate": {"accelerate"},  # diffusers loads weights in half the memory with it
    "test": {"pytest-xdist", "tensorboard", "moto", *TOOLS},
}
# s3fs's errors are botocore's, and tests build transformers' tokenizers: of the versions that those two ask for.
PARTS = {"botocore": "s3fs", "tokenizers": "transformers"}


def declared(texts: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in texts} - {canonicalize_name(PROJECT["name"])}


def imported(folders: list[str]) -> set[str]:
    """Distributions whose modules the folders' files import, anywhere in them."""
    own = {path.stem for folder in ("tests", "benchmarks", "mini_world/pretrain") for path in (ROOT / folder).rglob("*.py")}
    own |= {"gift_generate", "gift_train", "gift_shared", "gift_datasets", "gift_mini", "gift_manifests"}
    providers = importlib.metadata.packages_distributions()
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for module in roots(path) - sys.stdlib_module_names - own:
            assert module in providers, f"{path.relative_to(ROOT)} imports {module}, which is not installed"
            found.add(PARTS.get(module, canonicalize_name(providers[module][0])))
    return found


def roots(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names


BASE = declared(PROJECT["dependencies"])


@pytest.mark.parametrize("extra", ["generate", "train"])
def test_a_stages_extra_declares_what_the_stage_imports_and_no_more(extra: str) -> None:
    assert imported(FOLDERS[extra]) - BASE == declared(EXTRAS[extra]) - NOT_IMPORTED.get(extra, set())


def test_what_both_stages_share_declares_what_it_imports_and_no_more() -> None:
    assert imported(["shared/gift_shared"]) - BASE == declared([*EXTRAS["cluster"], *EXTRAS["notebook"], *EXTRAS["remote"]])


def test_every_package_of_the_base_is_imported_by_what_is_installed_and_in_no_extra() -> None:
    assert imported(["generate", "train", "shared", "mini_world/gift_mini"]) >= BASE
    assert set() == BASE & {name for texts in EXTRAS.values() for name in declared(texts)}


def test_the_tests_extra_declares_what_only_they_import_and_the_tools_they_need() -> None:
    others = BASE.union(*(declared(EXTRAS[extra]) for extra in ("generate", "train", "cluster", "notebook", "remote")))
    assert imported(FOLDERS["test"]) - others == declared(EXTRAS["test"]) - NOT_IMPORTED["test"]


def test_every_requirement_has_one_lower_bound_the_same_in_all_extras() -> None:
    bounds: dict[str, set[str]] = {}
    for requirement in requirements():
        bounds.setdefault(canonicalize_name(requirement.name), set()).add(str(lowest(requirement)))
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_the_set_in_use_pins_every_declared_package_above_its_bound() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, (line for line in lines if not line.startswith("#")))}
    assert pins.keys() == {canonicalize_name(requirement.name) for requirement in requirements()}
    for requirement in requirements():
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "==", requirement.name
        assert requirement.specifier.contains(pin.version), requirement.name


def test_a_package_taken_as_a_part_comes_with_the_one_it_is_a_part_of() -> None:
    for part, whole in PARTS.items():
        assert part in needs(whole, depth=2)


def needs(name: str, depth: int) -> set[str]:
    """Names of what a distribution requires without extras, and what that requires, `depth` times."""
    direct = [Requirement(text) for text in importlib.metadata.requires(name) or [] if "extra ==" not in text]
    names = {canonicalize_name(requirement.name) for requirement in direct if requirement.marker is None or requirement.marker.evaluate()}
    return names if depth == 1 else names.union(*(needs(one, depth - 1) for one in names))
