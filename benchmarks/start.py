"""How long it takes until something happens: python benchmarks/start.py [--quick] [--device cuda]

`--help` of both command lines; `gift-train run` until its first step, for the mini CLIP and for ViT-B/16 with random weights, on a world of
two tasks small enough that its first evaluation is seconds; `gift-generate render` until its first image is on disk. Real commands in
processes of their own, ended once they have done what they were started for. Where the time goes is in the JSON: the phases of a run by
its own log, and the slowest imports.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measure import Finding, report
from streaming import photo

HELP_SECONDS = 0.5
PATIENCE = 300.0  # seconds until a command counts as stuck
CLASSES = ("red fox", "grey wolf")
MODULES = ("gift_train.training.run", "gift_generate.pipeline", "gift_generate.rendering.diffusers_renderer")
IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)$")
WATCHED = ("torch", "open_clip", "transformers", "torchvision", "torch._dynamo", "diffusers", "pyarrow", "webdataset", "numpy", "PIL")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one start of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    details: dict[str, Any] = {"device": arguments.device, "rounds": rounds}
    findings = [
        Finding(what=f"{program} --help", value=help_seconds(program, 2 * rounds), unit="s", target=HELP_SECONDS, at_most=True)
        for program in ("gift-generate", "gift-train")
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder))
        for name, model in (("mini CLIP", ["mini"]), ("ViT-B/16", ["ViT-B-16", "--pretrained", "random"])):
            starts = [first_step(Path(folder), f"{name[:4]}-{number}", model, arguments.device) for number in range(rounds)]
            details[f"run, {name}"] = starts
            value = statistics.median(start["first step"] for start in starts)
            findings.append(Finding(what=f"gift-train run until the first step, {name}", value=value, unit="s"))
        seconds = [first_image(Path(folder) / f"shards-{number}", arguments.device) for number in range(rounds)]
        findings.append(Finding(what="gift-generate render until the first image", value=statistics.median(seconds), unit="s"))
    details["seconds of imports"] = {module: import_seconds(module) for module in MODULES}
    report("start", findings, details, is_quick=arguments.quick, device=arguments.device)


def command(program: str, *arguments: str | Path) -> list[str]:
    """A command line of ours, run by this interpreter."""
    module = program.replace("-", "_")
    return [sys.executable, "-c", f"from {module}.cli import main; main()", *map(str, arguments)]


def help_seconds(program: str, rounds: int) -> float:
    """Median time from start to end."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run(command(program, "--help"), check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def first_step(world: Path, name: str, model: list[str], device: str) -> dict[str, float]:
    """Seconds from the start of the process to the phases that the run's own log names, and to its first logged step."""
    out = world / name
    arguments = [
        "run", "--recipe", "finetune", "--order", "pair", "--manifests", world, "--data-root", world / "data", "--out", out,
        "--device", device, "--model", *model, "--set", "batch_size=8", "--set", "log_every=1",
    ]  # fmt: skip
    log, metrics = out / "log.jsonl", out / "metrics.jsonl"
    started = datetime.now(UTC)
    seconds = seconds_until(
        lambda: metrics.is_file() and metrics.stat().st_size > 0, command("gift-train", *arguments), world / f"{name}.txt"
    )
    phases: dict[str, float] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        phases.setdefault(event["event"], (datetime.fromisoformat(event["time"]) - started).total_seconds())
    return phases | {"first step": seconds}


def first_image(out: Path, device: str) -> float:
    """Seconds until the first shard, of one image, counts."""
    plan = out.with_suffix(".parquet")
    planned = command("gift-generate", "plan", "--images-per-task", "1", "--images-per-shard", "1", "--steps", "5", "--out", plan)
    subprocess.run(planned, check=True, stdout=subprocess.DEVNULL)
    render = command("gift-generate", "render", "--plan", plan, "--out", out, "--batch-size", "1", "--device", device)
    return seconds_until(lambda: any((out / "shards").glob("*.parquet")), render, out.with_suffix(".txt"))


def seconds_until(has_happened: Callable[[], bool], words: list[str], told: Path) -> float:
    """Start a command, wait until something has happened, end the command. Raises RuntimeError with its last words if it ends before."""
    with told.open("wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=file, stderr=file, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        try:
            while not has_happened():
                if process.poll() is not None and not has_happened():
                    raise RuntimeError(told.read_text(encoding="utf-8")[-2000:])
                if time.perf_counter() - started > PATIENCE:
                    raise RuntimeError(f"nothing happened in {PATIENCE:g} s: {' '.join(words)}")
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def write_world(root: Path) -> None:
    """Two tasks of two classes with a few JPEGs each, and an order of them."""
    for task in ("first", "second"):
        for part, count in (("train", 8), ("test", 4)):
            for label, name in enumerate(CLASSES):
                folder = root / "data" / task / part / name.replace(" ", "_")
                folder.mkdir(parents=True)
                for number in range(count):
                    (folder / f"{number}.jpg").write_bytes(photo(100 * label + number, 256))
        data = f'[data]\nkind = "image_folder"\ntrain = "{task}/train"\ntest = "{task}/test"\n'
        toml = (
            f'name = "{task}"\ndisplay_name = "{task.title()}"\nclass_names = {json.dumps(CLASSES)}\ntemplates = ["a photo of a {{}}."]\n'
        )
        (root / "tasks").mkdir(exist_ok=True)
        (root / f"tasks/{task}.toml").write_text(toml + data)
    (root / "orders").mkdir()
    order = 'name = "pair"\ndisplay_name = "Pair"\npretraining_source = "mini_base"\ntasks = ["first", "second"]\nrecipes = "mini"\n'
    (root / "orders/pair.toml").write_text(order)


def import_seconds(module: str) -> dict[str, float]:
    """Seconds to import one of our modules, and of that the large libraries, each with what it imports itself."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", f"import {module}"], check=True, stderr=subprocess.PIPE, text=True)
    found = dict(imported(done.stderr))
    return {name: found[name] for name in (module, *WATCHED) if name in found}


def imported(told: str) -> Iterator[tuple[str, float]]:
    """(module, seconds with all below it) of Python's -X importtime."""
    for line in told.splitlines():
        matched = IMPORT_LINE.match(line)
        if matched:
            yield matched[3], int(matched[2]) / 1e6


if __name__ == "__main__":
    main()
