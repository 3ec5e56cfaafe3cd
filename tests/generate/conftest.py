"""A tiny world of manifests, and the real command line run in this process."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gift_generate.cli import main
from gift_generate.pictures import ImageEncoder
from gift_generate.pipeline import RenderedPictures, run
from gift_generate.plan import PlanRequest, make_plan
from gift_generate.renderer import FlatColorRenderer
from gift_generate.workers import Worker
from gift_shared.manifests import Manifests
from gift_shared.schema import PlanKind
from gift_shared.tables import write_plan


@dataclass(frozen=True)
class CommandResult:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


Command = Callable[..., CommandResult]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("plan", "--out", path)` runs gift-generate as the console script does."""

    def run_command(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["gift-generate", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests, the plan of 2 tasks x 10 images in shards of 4, and that plan rendered in flat colours; copied, never changed."""
    folder = tmp_path_factory.mktemp("tiny")
    write_manifests(folder / "manifests")
    request = PlanRequest(kind=PlanKind.PER_TASK, order="tiny", images_per_task=10, images_per_shard=4)
    write_plan(folder / "plan.parquet", *make_plan(request, Manifests((folder / "manifests",))))
    source = RenderedPictures(FlatColorRenderer(height=16, width=16), ImageEncoder(), max_attempts=3)
    run(folder / "rendered", folder / "plan.parquet", source, Worker(), lambda message: None)
    return folder


@pytest.fixture
def manifests(tiny_world: Path, tmp_path: Path) -> Path:
    """A folder of manifests: order `tiny` = cats, cars after the source `world`."""
    return Path(shutil.copytree(tiny_world / "manifests", tmp_path / "manifests"))


@pytest.fixture
def plan(tiny_world: Path, tmp_path: Path) -> Path:
    """A plan of 2 tasks x 10 images in shards of 4."""
    return Path(shutil.copy(tiny_world / "plan.parquet", tmp_path / "plan.parquet"))


@pytest.fixture
def rendered(tiny_world: Path, tmp_path: Path) -> Path:
    """That plan, rendered in flat colours of 16 x 16 pixels."""
    return Path(shutil.copytree(tiny_world / "rendered", tmp_path / "rendered"))


def write_manifests(folder: Path) -> None:
    (folder / "orders").mkdir(parents=True)
    (folder / "tasks").mkdir()
    write_task(folder, "world", [f"thing {number}" for number in range(7)], "a photo of a {}.")
    write_task(folder, "cats", ["tabby", "sphynx", "manx"], "a photo of a {}, a type of cat.")
    write_task(folder, "cars", ["van/minibus", "St. Car"], 'a photo of the car: "{}".')
    write_order(folder, "tiny", ["cats", "cars"])


def write_task(folder: Path, name: str, class_names: list[str], template: str) -> None:
    lines = {"name": name, "display_name": name.title(), "class_names": class_names, "templates": [template]}
    (folder / "tasks" / f"{name}.toml").write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items()))


@pytest.fixture
def add_order(manifests: Path) -> Callable[..., None]:
    """`add_order("name", ["cats"], "extra = 1")` adds an order to the folder of manifests."""
    return lambda name, tasks, extra="": write_order(manifests, name, tasks, extra)


def write_order(folder: Path, name: str, tasks: list[str], extra: str = "") -> None:
    (folder / "orders" / f"{name}.toml").write_text(
        f'name = "{name}"\ndisplay_name = "{name}"\npretraining_source = "world"\ntasks = {json.dumps(tasks)}\nrecipes = "mini"\n{extra}\n'
    )
