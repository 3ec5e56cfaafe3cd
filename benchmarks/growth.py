"""Time and memory of what handles rows as these grow: python benchmarks/growth.py [--quick] [--rows-only]

Each part runs in a process of its own. Whole folders, in shards of 1,000: so that a million rows are a matter of minutes and not of a
render, the first row of every shard has a picture (8 x 8 pixels) and the others are recorded as failed. Resume is the render that finds
everything done but the last shard, which it makes, and then writes the index.

Rows alone, to ten million, as of a pool with every image there: plan; open (what a worker reads of the plan before it renders, and
the rows of a shard); join (the index, written from the rows of one shard after the other); card; select (what eleven tasks replay, as every
process of a run does it); status_of_index (what is counted at the end of a render). docs/scale.md tells what follows for a hundred million.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import RESULTS, Finding, in_own_process, peak_gigabytes, report

SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (10_000, 100_000)
COMMANDS = ("status", "verify", "resume")
ROW_SIZES = (100_000, 1_000_000, 10_000_000)
QUICK_ROW_SIZES = (10_000, 100_000)
ROW_PARTS = ("plan", "open", "join", "card", "select", "status_of_index")
MOST_GIGABYTES = 1.0
MOST_GIGABYTES_OF_A_PLAN = 3.0  # of ten million rows: it is made in memory, once, by one process
MOST_GROWTH = 1.25  # of the time a row takes, when there are ten times as many: 1 is linear, below it is better
ORDER, NUM_TASKS = "mtil-1", 11
RENDER = ("--model", "flat-color", "--height", "8", "--width", "8", "--image-format", "png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without the million rows")
    parser.add_argument("--one", nargs=3, metavar=("COMMAND", "ROWS", "FOLDER"), help="what each process runs")
    parser.add_argument("--rows-only", action="store_true", help="leave out whole folders; what is known of them stays as it was")
    arguments = parser.parse_args()
    if arguments.one:
        command, num_rows, folder = arguments.one
        print(json.dumps(one(command, int(num_rows), Path(folder))))
        return
    sizes, row_sizes = (QUICK_SIZES, QUICK_ROW_SIZES) if arguments.quick else (SIZES, ROW_SIZES)
    measured = {"rows": measure(row_sizes, ROW_PARTS)}
    if arguments.rows_only:
        before = json.loads((RESULTS / f"growth{'_quick' if arguments.quick else ''}.json").read_text(encoding="utf-8"))["details"]
        measured["folders"] = {name: {int(size): found for size, found in of.items()} for name, of in before["folders"].items()}
    else:
        measured["folders"] = measure(sizes, COMMANDS, before=("plan", "make"))
    found = [*findings(measured["folders"]), *findings(measured["rows"])]
    report("growth", found, measured, is_quick=arguments.quick)


def measure(sizes: tuple[int, ...], commands: tuple[str, ...], before: tuple[str, ...] = ()) -> dict[str, dict[int, dict[str, Any]]]:
    """What each command took at each size; `before` are those that make what they need."""
    measured: dict[str, dict[int, dict[str, Any]]] = {command: {} for command in commands}
    for num_rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for command in (*before, *commands):
                found = in_own_process(__file__, "--one", command, str(num_rows), folder)
                print(f"{num_rows:>10,} rows  {command:15} {found['seconds']:8.2f} s  {found['gigabytes']:6.2f} GB", file=sys.stderr)
                if command in commands:
                    measured[command][num_rows] = found
    return measured


def findings(measured: dict[str, dict[int, dict[str, Any]]]) -> Iterator[Finding]:
    """Seconds and memory at the largest size, and how the processor time of a row grew on the last step (other work does not count)."""
    for command, by_size in measured.items():
        before, last = sorted(by_size)[-2:]
        found, most = by_size[last], MOST_GIGABYTES_OF_A_PLAN if command == "plan" else MOST_GIGABYTES
        yield Finding(what=f"{command}, {last:,} rows: processor time", value=found["cpu_seconds"], unit="s")
        yield Finding(what=f"{command}, {last:,} rows: peak memory", value=found["gigabytes"], unit="GB", target=most, at_most=True)
        grown = (found["cpu_seconds"] / last) / (by_size[before]["cpu_seconds"] / before)
        yield Finding(
            what=f"{command}: processor time of a row against {before:,} rows", value=grown, unit="x", target=MOST_GROWTH, at_most=True
        )
        if "file_bytes" in found:
            yield Finding(what=f"{command}, {last:,} rows: bytes of a row in the file", value=found["file_bytes"] / last, unit="bytes")


def one(command: str, num_rows: int, folder: Path) -> dict[str, float]:
    """Run one command on `folder`; seconds without the start of Python, and the most memory the process held."""
    plan, out = folder / "plan.parquet", folder / "out"
    if command == "make":
        make_output(plan, out)
        return {"seconds": 0.0, "gigabytes": peak_gigabytes()}
    if command == "resume":
        forget_last_shard(out)
    action, written = _action(command, num_rows, plan, out)
    started, cpu_started = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        action()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    size = {} if written is None else {"file_bytes": written.stat().st_size}
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "gigabytes": peak_gigabytes(), **size}


def _action(command: str, num_rows: int, plan: Path, out: Path) -> tuple[Callable[[], Any], Path | None]:
    """What is measured, all of it imported by then, and the file that it writes."""
    from gift_generate.cli import main as gift_generate

    per_task = num_rows // NUM_TASKS
    words = {
        "plan": ["plan", "--order", ORDER, "--images-per-task", per_task, "--draws-per-task", per_task, "--out", plan],
        "status": ["status", "--out", out],
        "verify": ["verify", "--out", out],
        "resume": ["render", "--plan", plan, "--out", out, *RENDER],
    }
    if command in words:
        sys.argv = ["gift-generate", *map(str, words[command])]
        return lambda: to_its_end(gift_generate), plan if command == "plan" else None
    from rows_alone import ACTIONS

    return ACTIONS[command](num_rows, plan, out)


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
