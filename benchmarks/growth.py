"""Time and memory of plan, status, verify and resume as the plan grows: python benchmarks/growth.py [--quick]

Each command runs in a process of its own on an output folder of so many rows, in shards of 1,000. So that a million rows are a matter of
minutes and not of a render, the first row of every shard has a picture (8 x 8 pixels) and the others are recorded as failed. Resume is the
render that finds everything done but the last shard, which it makes, and then writes the index.
"""

import argparse
import contextlib
import io
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Finding, in_own_process, peak_gigabytes, report

SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (10_000, 100_000)
COMMANDS = ("plan", "status", "verify", "resume")
MOST_GIGABYTES = 1.0
MOST_GROWTH = 1.25  # of the time a row takes, when there are ten times as many: 1 is linear, below it is better
NUM_TASKS = 11  # of the order
RENDER = ("--model", "flat-color", "--height", "8", "--width", "8", "--image-format", "png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without the million rows")
    parser.add_argument("--one", nargs=3, metavar=("COMMAND", "ROWS", "FOLDER"), help="what each process runs")
    arguments = parser.parse_args()
    if arguments.one:
        command, num_rows, folder = arguments.one
        print(json.dumps(one(command, int(num_rows), Path(folder))))
        return
    sizes = QUICK_SIZES if arguments.quick else SIZES
    measured: dict[str, dict[int, dict[str, Any]]] = {command: {} for command in COMMANDS}
    for num_rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for command in ("plan", "make", *COMMANDS[1:]):
                found = in_own_process(__file__, "--one", command, str(num_rows), folder)
                print(f"{num_rows:>9,} rows  {command:7} {found['seconds']:8.2f} s  {found['gigabytes']:6.2f} GB", file=sys.stderr)
                if command != "make":
                    measured[command][num_rows] = found
    report("growth", list(findings(measured, sizes)), {"sizes": sizes, "measured": measured}, is_quick=arguments.quick)


def findings(measured: dict[str, dict[int, dict[str, Any]]], sizes: tuple[int, ...]) -> Any:
    """Seconds and memory at the largest size, and how the processor time of a row grew on the last step (other work does not count)."""
    for command, by_size in measured.items():
        last, before = by_size[sizes[-1]], by_size[sizes[-2]]
        yield Finding(what=f"{command}, {sizes[-1]:,} rows", value=last["seconds"], unit="s")
        yield Finding(
            what=f"{command}, {sizes[-1]:,} rows: peak memory", value=last["gigabytes"], unit="GB", target=MOST_GIGABYTES, at_most=True
        )
        grown = (last["cpu_seconds"] / sizes[-1]) / (before["cpu_seconds"] / sizes[-2])
        yield Finding(
            what=f"{command}: processor time of a row against {sizes[-2]:,} rows", value=grown, unit="x", target=MOST_GROWTH, at_most=True
        )


def one(command: str, num_rows: int, folder: Path) -> dict[str, float]:
    """Run one command on `folder`; seconds without the start of Python, and the most memory the process held."""
    plan, out = folder / "plan.parquet", folder / "out"
    if command == "make":
        make_output(plan, out)
        return {"seconds": 0.0, "gigabytes": peak_gigabytes()}
    if command == "resume":
        forget_last_shard(out)
    per_task = num_rows // NUM_TASKS
    arguments = {
        "plan": ["plan", "--order", "mtil-1", "--images-per-task", per_task, "--draws-per-task", per_task, "--out", plan],
        "status": ["status", "--out", out],
        "verify": ["verify", "--out", out],
        "resume": ["render", "--plan", plan, "--out", out, *RENDER],
    }[command]
    from gift_generate.cli import main as gift_generate

    sys.argv = ["gift-generate", *map(str, arguments)]
    started, cpu_started = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        to_its_end(gift_generate)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "gigabytes": peak_gigabytes()}


def to_its_end(main: Callable[[], None]) -> None:
    """typer leaves by SystemExit; any code but 0 ends this process too."""
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise


def make_output(plan: Path, out: Path) -> None:
    """An output folder of this plan with every shard written, all rows but the first of each recorded as failed."""
    from gift_generate.images.encoding import ImageEncoder
    from gift_generate.images.image_source import Picture
    from gift_generate.images.rendered import RenderedImages
    from gift_generate.output.binding import bind_output
    from gift_generate.output.shard_writer import write_shard
    from gift_generate.rendering.factory import open_renderer
    from gift_generate.rendering.model_options import ModelOptions
    from gift_shared.schema import SampleStatus

    renderer = open_renderer(ModelOptions(model="flat-color", height=8, width=8))
    source = RenderedImages(renderer, ImageEncoder("png"), 3)
    output = bind_output(out, plan, source)
    for shard in output.shards:
        rows = output.rows(shard)
        failed = (Picture(status=SampleStatus.FAILED, message="not rendered", attempts=1, used_seed=row["sample_seed"]) for row in rows[1:])
        first = source.pictures(rows[:1], lambda _: None)
        write_shard(out, shard.name, rows, list(itertools.chain(first, failed)), output.metadata)
    output.write_index()


def forget_last_shard(out: Path) -> None:
    """As if the worker had been killed before it wrote the last shard."""
    (out / "index.parquet").unlink()
    last = max((out / "shards").glob("*.parquet"))
    last.unlink()
    last.with_suffix(".tar").unlink()
    for leftover in ("claims", "workers"):
        shutil.rmtree(out / leftover, ignore_errors=True)


if __name__ == "__main__":
    main()
