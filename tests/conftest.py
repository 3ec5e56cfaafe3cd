"""For all tests: how they share the cores, and two servers on free ports of the loopback that log every request.

One is a real web server, nginx; the other is a look-alike of the Hugging Face hub, for its real client.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gift_shared.preemption import SIGNALS

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
SECONDS_TO_START = 60
CONFIGURATION = """
daemon off;
master_process off;
pid {state}/pid;
events {{ worker_connections 64; }}
http {{
    {temporaries}
    log_format plain "$request_method $uri $status $body_bytes_sent";
    access_log {state}/log plain;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        {rules}
    }}
}}
"""


# Files that wait or compute for long. They begin first, so that no process is left alone with one of them at the end.
LONG = (
    "slurm/test_generation.py", "workers/test_many_workers.py", "slurm/test_page.py",
    "running/test_loader_ends.py", "running/test_kills.py", "distributed/test_ranks.py", "running/test_run.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of the long files first, in the order named here; all else as it is."""

    def place(item: pytest.Item) -> int:
        return next((number for number, name in enumerate(LONG) if item.path.as_posix().endswith(name)), len(LONG))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command that was told to leave ignores further signals until its process ends, which in a test is this one."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@dataclass
class Site:
    """A folder served by nginx. `rules` go into nginx's server block."""

    root: Path
    state: Path
    port: int
    rules: str
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, method: str = "GET", ending: str = "", status: str = "") -> list[str]:
        """What was asked for so far: `METHOD URI STATUS BYTES`, of finished requests."""
        lines = [line.split() for line in (self.state / "log").read_text().splitlines()]
        return [" ".join(line) for line in lines if line[0] == method and line[1].endswith(ending) and line[2].startswith(status)]

    def start(self) -> None:
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporaries = " ".join(f"{name}_temp_path {self.state}/{name};" for name in names)
        text = CONFIGURATION.format(state=self.state, temporaries=temporaries, port=self.port, root=self.root, rules=self.rules)
        (self.state / "nginx.conf").write_text(text)
        command = [str(NGINX), "-p", str(self.state), "-e", str(self.state / "errors"), "-c", str(self.state / "nginx.conf")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for_port(self.port, self._process)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until somebody listens there, or the process that should has ended."""
    end = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None, f"the server has ended with exit code {process.returncode}"
            assert time.monotonic() < end, "the server does not listen"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def listening() -> Iterator[Callable[[Callable[[int], list[str]]], int]]:
    """`listening(command)` starts a server by its command, which is made from the port it shall use, and returns the port."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: Callable[[int], list[str]]) -> int:
        port = free_port()
        processes.append(subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_for_port(port, processes[-1])
        return port

    yield start
    for process in processes:
        process.kill()
        process.wait()


@dataclass
class HubSite:
    """The look-alike of the hub."""

    port: int
    log: Path

    def environment(self, token: str | None = None) -> dict[str, str]:
        """For a process that shall see this hub and no other, and upload by a protocol that can be looked at (not xet)."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "NO_PROXY": "127.0.0.1,localhost", "HF_HUB_DISABLE_XET": "1"}
        return (
            kept
            | hub
            | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(self.log.parent / "home")}
            | ({"HF_TOKEN": token} if token else {})
        )

    def use(self, monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> None:
        """Let the process of the tests see this hub, as nobody or as the owner of a token."""
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        # The library reads these variables when it is imported, which may have been before.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(self.log.parent / "no-token"))

    def control(self, **settings: object) -> None:
        """Tell the look-alike how to behave: see hub_lookalike.py."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/control", json.dumps(settings).encode(), method="POST")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()

    def run(self, program: str, *arguments: object, token: str = "hf_good") -> str:
        """What a Python program prints that sees this hub, as somebody who may write."""
        line = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.run(line, env=self.environment(token), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def commit(self, dataset: str, path: str, content: Path) -> str:
        """Put a file into a dataset's main branch by the hub's client, in a process that uses this hub; the new commit."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=f"http://127.0.0.1:{self.port}", token="hf_good")
        return api.upload_file(repo_id=dataset, repo_type="dataset", path_in_repo=path, path_or_fileobj=content).oid

    def requests(self, method: str) -> list[str]:
        """Paths that were asked for so far and not refused."""
        lines = [line.split(" ") for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [path for asked, path, status in lines if asked == method and int(status) < 400]

    def fetched(self) -> set[str]:
        """Names of files that were asked for with their content."""
        return {path.partition("/resolve/")[2].partition("/")[2] for path in self.requests("GET") if "/resolve/" in path}


@pytest.fixture(scope="module")
def hub_site(listening: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], HubSite]:
    """`hub_site(folder)` starts a hub that holds folder/models/<owner>/<name> and folder/datasets/<owner>/<name>."""

    def start(folder: Path) -> HubSite:
        log = tmp_path_factory.mktemp("hub") / "log"
        program = Path(__file__).with_name("hub_lookalike.py")
        port = listening(lambda port: [sys.executable, str(program), str(port), str(folder), str(log)])
        return HubSite(port, log)

    return start


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    """`served(folder)` serves a folder until the test ends; `served(folder, rules)` with nginx's rules beside."""
    if NGINX is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sites: list[Site] = []

    def serve(root: Path, rules: str = "") -> Site:
        site = Site(root, tmp_path_factory.mktemp("nginx"), free_port(), rules)
        site.start()
        sites.append(site)
        return site

    yield serve
    for site in sites:
        site.kill()
