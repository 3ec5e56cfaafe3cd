"""Who may import whom. The two stages meet in shards and manifests alone, and heavy libraries have one door each."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "gift_generate": ROOT / "generate" / "gift_generate",
    "gift_train": ROOT / "train" / "gift_train",
    "gift_shared": ROOT / "shared" / "gift_shared",
    "gift_datasets": ROOT / "shared" / "gift_datasets",
    "gift_mini": ROOT / "mini_world" / "gift_mini",
}
HEAVY = {
    "torch", "torchvision", "diffusers", "transformers", "open_clip", "safetensors", "accelerate", "webdataset",
    "numpy", "scipy", "sklearn", "pyarrow", "PIL", "matplotlib", "tqdm", "huggingface_hub",
}  # fmt: skip

# The rooms of a package, lowest first: files at its top are rooms too. A room may import those of the lines above its own, and no other.
ROOMS = {
    "gift_generate": [
        {"model_families"},
        {"planning", "rendering", "workers"},
        {"images", "adaptation"},
        {"output"},
        {"views", "pipeline", "notebook"},
        {"cli", "__init__"},
    ],
    "gift_train": [
        {"options", "devices", "clip"},
        {"distributed"},
        {"data"},
        {"methods", "evaluation"},
        {"recipes"},
        {"records"},
        {"training"},
        {"parity", "report", "export", "notebook", "scoring"},
        {"cli", "__init__"},
    ],
}


def modules(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imports(path: Path, *, is_top_level_only: bool = False) -> Iterator[str]:
    """Absolute names of the modules a file imports; with `is_top_level_only` those that importing it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(_run_at_import(tree)) if is_top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _run_at_import(child)


def importers(package: str, library: str) -> set[str]:
    return {str(path.relative_to(PACKAGES[package])) for path in modules(package) if library in roots(imports(path))}


def roots(names: Iterator[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("gift_generate", {"gift_train"}),
        ("gift_train", {"gift_generate"}),
        ("gift_shared", {"gift_train", "gift_generate", "gift_mini", "gift_datasets"}),
        ("gift_datasets", {"gift_train", "gift_generate", "gift_mini", "diffusers", "transformers", "open_clip"}),
        ("gift_mini", {"gift_train", "gift_generate"}),
        ("gift_generate", {"open_clip", "webdataset"}),
        ("gift_train", {"diffusers"}),
        ("gift_shared", {"torch", "torchvision", "diffusers", "transformers", "open_clip", "safetensors"}),
    ],
)
def test_a_package_keeps_to_its_side(package: str, forbidden: set[str]) -> None:
    assert modules(package)
    breaches = {f"{path.name}: {name}" for path in modules(package) for name in roots(imports(path)) & forbidden}
    assert breaches == set()


def test_the_tests_of_one_stage_do_not_import_the_other() -> None:
    for folder, forbidden in (("generate", "gift_train"), ("train", "gift_generate")):
        breaches = [path.name for path in (ROOT / "tests" / folder).rglob("*.py") if forbidden in roots(imports(path))]
        assert breaches == []


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        (
            "diffusers",
            {"rendering/diffusers_renderer", "rendering/loading", "rendering/solvers", "adaptation/denoising", "adaptation/model"},
        ),
        ("transformers", {"rendering/diffusers_renderer", "rendering/loading", "adaptation/model"}),
        ("peft", {"adaptation/model"}),
        ("safetensors", {"rendering/loading", "rendering/lora_weights", "adaptation/record"}),
        ("huggingface_hub", {"rendering/hub"}),
        ("gift_datasets", {"adaptation/task_images"}),
    ],
)
def test_the_generator_has_few_doors_to_the_model(library: str, doors: set[str]) -> None:
    assert importers("gift_generate", library) == {f"{name}.py" for name in doors}


def test_the_generator_has_torch_behind_two_doors_alone() -> None:
    """The renderer, and the training of LoRAs, which is one room."""
    behind = {
        "approximations", "compilation", "devices", "exact_savings", "loading", "lora_weights", "onednn", "pixels", "safety", "solvers",
    }  # fmt: skip
    families = {f"families/{name}" for name in ("base", "generic", "unet")}
    torch_importers = importers("gift_generate", "torch") | {"rendering/solvers.py"}  # which has torch by way of diffusers
    in_rendering = {path for path in torch_importers if path.startswith("rendering/")}
    assert in_rendering == {f"rendering/{name}.py" for name in ("diffusers_renderer", *behind, *families)}
    assert {path.partition("/")[0] for path in torch_importers - in_rendering} == {"adaptation"}
    outside = [path for path in modules("gift_generate") if path.parent.name != "adaptation"]
    for name in behind:
        users = {path.name for path in outside if f"gift_generate.rendering.{name}" in set(imports(path))}
        assert users - {f"{other}.py" for other in behind} == {"diffusers_renderer.py"}
    users = {path.name for path in outside if "gift_generate.adaptation" in {name.rpartition(".")[0] for name in imports(path)}}
    assert users == {"adapt.py"}


def test_the_trainer_has_one_door_to_open_clip() -> None:
    assert all(path.startswith("clip/") for path in importers("gift_train", "open_clip"))
    users = {path.name for path in modules("gift_train") if "gift_train.clip.towers" in set(imports(path))}
    assert users == {"model.py"}


def test_the_drawing_of_the_architecture_is_the_code() -> None:
    specification = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs/draw_architecture.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.PICTURE.read_text(encoding="utf-8") == module.drawing(module.graph()), "run python docs/draw_architecture.py"


@pytest.mark.parametrize("library", ["fsspec", "s3fs", "aiohttp", "botocore"])
def test_one_module_speaks_to_servers_of_shards(library: str) -> None:
    found = {package: importers(package, library) for package in PACKAGES}
    assert {package: files for package, files in found.items() if files} == {"gift_shared": {"remote_files.py"}}


def test_few_modules_speak_to_the_hub() -> None:
    found = {package: importers(package, "huggingface_hub") for package in PACKAGES}
    doors = {
        "gift_shared": {"hub.py", "hub_files.py", "hub_upload.py"},
        "gift_generate": {"rendering/hub.py"},
        "gift_train": {"clip/hub.py"},
    }
    assert {package: files for package, files in found.items() if files} == doors


@pytest.mark.parametrize("package", ["gift_generate", "gift_train"])
def test_the_command_line_imports_nothing_heavy(package: str) -> None:
    """Followed through our own modules: what `cli.py` imports at its top level, and what that imports, and so on."""
    todo, seen = [f"{package}.cli"], set()
    while todo:
        name = todo.pop()
        path = module_path(name)
        if path is None or name in seen:
            continue
        seen.add(name)
        names = set(imports(path, is_top_level_only=True))
        heavy = {root for root in roots(iter(names)) if root in HEAVY}
        assert heavy == set(), f"{name} imports {heavy} at its top level"
        todo += names
    assert f"{package}.cli" in seen


def module_path(name: str) -> Path | None:
    """File of one of our modules (or packages), None for any other name."""
    package, *rest = name.split(".")
    if package not in PACKAGES:
        return None
    path = PACKAGES[package].joinpath(*rest)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@pytest.mark.parametrize("package", list(ROOMS))
def test_a_room_imports_the_rooms_below_it_alone(package: str) -> None:
    """Imports within functions are counted, and those for types alone."""
    level = {room: number for number, rooms in enumerate(ROOMS[package]) for room in rooms}
    assert {room_of(path, package) for path in modules(package)} == set(level)
    breaches = {
        f"{importer.relative_to(PACKAGES[package])} imports {imported.relative_to(PACKAGES[package])}"
        for importer, files in files_imported(package).items()
        for imported in files
        if room_of(importer, package) != room_of(imported, package)
        and not level[room_of(imported, package)] < level[room_of(importer, package)]
    }
    assert breaches == set()


@pytest.mark.parametrize("package", list(ROOMS))
def test_no_file_imports_itself_by_way_of_others(package: str) -> None:
    """Imports within functions are counted here too: a circle that only a late import keeps from failing is one all the same."""
    circle: list[Path] = []
    try:
        graphlib.TopologicalSorter(files_imported(package)).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert [str(path.relative_to(PACKAGES[package])) for path in circle] == []


def room_of(path: Path, package: str) -> str:
    """The folder of a package that a file is in, or its own name if it is in none."""
    first, *_ = path.relative_to(PACKAGES[package]).parts
    return first.removesuffix(".py")


def files_imported(package: str) -> dict[Path, set[Path]]:
    """For each file the others of its package that it imports, anywhere in it."""
    return {path: {found for name in imports(path) if (found := file_of(name, package))} - {path} for path in modules(package)}


def file_of(name: str, package: str) -> Path | None:
    """The file behind a name that is imported, unless it is of another package or this package's root, of which all are part."""
    path = module_path(name) if name.partition(".")[0] == package else None
    return None if path == PACKAGES[package] / "__init__.py" else path


@pytest.mark.parametrize("package", list(PACKAGES))
def test_no_room_is_called_utilities(package: str) -> None:
    assert {path.stem for path in modules(package)} & {"utils", "util", "helpers", "common", "misc"} == set()


def test_source_roots_are_no_packages() -> None:
    for path in PACKAGES.values():
        assert not (path.parent / "__init__.py").exists()
        assert (path / "__init__.py").is_file()


@pytest.mark.parametrize("package", ["gift_generate", "gift_train", "gift_shared", "gift_datasets"])
def test_files_and_functions_stay_readable(package: str) -> None:
    limits = {"file": 400, "function": 60}
    too_long = []
    for path in modules(package):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > limits["file"]:
            too_long.append(f"{path.name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and not is_command(node) and node.end_lineno - node.lineno >= limits["function"]:
                too_long.append(f"{path.name}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert too_long == []


def is_command(node: ast.FunctionDef) -> bool:
    """A typer command: its length is its flags'."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_importing_a_package_reads_no_heavy_library() -> None:
    program = f"import gift_generate, gift_train, gift_shared, gift_datasets, gift_mini, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
