"""A tiny world of manifests, and the real command line run in this process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gift_generate.cli import main
from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.pipeline import run
from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.workers.rank import Worker
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import write_plan
from gift_shared.schema import PlanKind


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


class Server:
    """The program of `forking.py`, started once for all tests."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("forking.py")
        self._process = subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._one_at_a_time = threading.Lock()  # a test's timer asks too

    def ask(self, request: dict) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class Workers:
    """Starts `gift-generate` as processes of its own, many a second, and asks after them."""

    def __init__(self, server: Server, log: Path) -> None:
        self._server = server
        self._log = log
        self._running: set[int] = set()

    def start(self, *arguments: object) -> int:
        """The number of the new process; what it prints goes to `log`."""
        process = self._server.ask({"start": [*map(str, arguments)], "log": str(self._log)})
        assert process is not None
        self._running.add(process)
        return process

    def poll(self, process: int) -> int | None:
        """Exit code (negative: the signal that killed it), None while it runs."""
        code = self._server.ask({"poll": process})
        if code is not None:
            self._running.discard(process)
        return code

    def wait(self, *processes: int, seconds: float = 60.0) -> list[int]:
        """Exit codes of all; fails if they take longer."""
        codes: dict[int, int] = {}
        deadline = time.monotonic() + seconds
        while len(codes) < len(processes):
            assert time.monotonic() < deadline, f"still running after {seconds} s: {self.log}"
            for process in processes:
                if process not in codes and (code := self.poll(process)) is not None:
                    codes[process] = code
            time.sleep(0.01)
        return [codes[process] for process in processes]

    def kill(self, process: int) -> None:
        """SIGKILL, and gone."""
        os.kill(process, signal.SIGKILL)
        self.wait(process)

    @property
    def log(self) -> str:
        """What all of them printed."""
        return self._log.read_text() if self._log.exists() else ""

    def close(self) -> None:
        """Kill what a failed test left running."""
        for process in list(self._running):
            if self.poll(process) is None:
                self.kill(process)


@pytest.fixture(scope="session")
def worker_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def workers(worker_server: Server, tmp_path: Path) -> Iterator[Workers]:
    """`workers.start("render", ...)` runs the command line in a process of its own."""
    started = Workers(worker_server, tmp_path / "workers.log")
    yield started
    started.close()


@pytest.fixture
def content() -> Callable[[Path], dict[str, bytes]]:
    """`content(out)`: everything in a folder that must not depend on time, machine or number of workers."""
    return folder_content


def folder_content(out: Path) -> dict[str, bytes]:
    files = [path for path in out.rglob("*") if path.is_file() and path.parent != out / "workers"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests, the plan of 2 tasks x 10 images in shards of 4, and that plan rendered in flat colours; copied, never changed."""
    folder = tmp_path_factory.mktemp("tiny")
    write_manifests(folder / "manifests")
    request = PlanRequest(kind=PlanKind.PER_TASK, order="tiny", images_per_task=10, images_per_shard=4)
    write_plan(folder / "plan.parquet", *make_plan(request, Manifests((folder / "manifests",))))
    source = RenderedImages(FlatColorRenderer(height=16, width=16), ImageEncoder(), max_attempts=3)
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
