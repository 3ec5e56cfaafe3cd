"""One command that tells whether a machine with a GPU is right, and how fast it is: `python -m benchmarks.gpu_check`.

    python -m benchmarks.gpu_check                          # seven minutes at most on one GPU; the same command goes on
    python -m benchmarks.gpu_check --device cpu --quick     # that every part runs, small, where there is no GPU

Parts run one after the other, the most valuable first, each in a process of its own with a limit of its own. What they found is kept in
benchmarks/results/gpu_<device>.json after every part: started again on the same code, what is done is not done again. The exit code is 1
if a part that tells right from wrong failed, was cut off, or had no time left; how fast anything was does not move it.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUDGET = 420  # seconds in all
SHORTEST = 10  # seconds below which no part is worth its start


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of device_parts.py; `limit` in seconds. `is_correctness`: it tells right from wrong."""

    name: str
    title: str
    limit: int
    is_correctness: bool


PARTS = [
    Part(name="golden", title="Golden numbers of the published code, fp32", limit=60, is_correctness=True),
    Part(name="fast_paths", title="Fast paths against plain code, values and gradients", limit=40, is_correctness=True),
    Part(name="training", title="Training step: ViT-B/16, 64 + 64 images, 100 classes", limit=90, is_correctness=False),
    Part(name="loss_curves", title="50 steps in bf16 beside fp32", limit=40, is_correctness=True),
    Part(name="rendering", title="Rendering in half precision against float32", limit=40, is_correctness=True),
    Part(name="generation", title="Generation: Stable Diffusion v1.5's architecture", limit=120, is_correctness=False),
    Part(name="gpu_tests", title="Tests marked gpu", limit=60, is_correctness=True),
    Part(name="resume", title="A killed run goes on", limit=120, is_correctness=True),
    Part(name="processes", title="Two processes on one device", limit=30, is_correctness=True),
    Part(name="loader", title="Where a step would wait for its images", limit=60, is_correctness=False),
    Part(name="compiled", title="Training step with --compile-step", limit=180, is_correctness=False),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --quick")
    parser.add_argument("--quick", action="store_true", help="small sizes: that every part runs, not how fast")
    parser.add_argument("--seconds", type=float, default=None, help=f"for all parts together  [default: {BUDGET}; none with --quick]")
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS], help="this part; repeatable")
    parser.add_argument("--fresh", action="store_true", help="do again what an earlier start has done")
    parser.add_argument("--out", type=Path, help="JSON file of the results  [default: benchmarks/results/gpu_<device>.json]")
    arguments = parser.parse_args()
    require_device(arguments.device)
    budget = arguments.seconds or (float("inf") if arguments.quick else BUDGET)
    out = arguments.out or HERE / "results" / f"gpu_{device_name(arguments.device)}{'_quick' if arguments.quick else ''}.json"
    record = opened(out, arguments.device, is_quick=arguments.quick, is_fresh=arguments.fresh)
    deadline = time.monotonic() + budget
    chosen = [part for part in PARTS if part.name in (arguments.only or [one.name for one in PARTS])]
    for number, part in enumerate(chosen, start=1):
        if record["parts"].get(part.name, {}).get("state") == "done":
            print(f"[{number}/{len(chosen)}] {part.title}: done before", flush=True)
            continue
        print(f"[{number}/{len(chosen)}] {part.title} ...", end=" ", flush=True)
        left = deadline - time.monotonic()
        limit = min(left, part.limit * (10 if arguments.quick else 1))
        result = run_part(part, arguments, record, limit) if left > SHORTEST else {"state": "no time left", "findings": [], "faults": []}
        record["parts"][part.name] = result
        write(out, record)
        print(f"{result['state']}, {result.get('seconds', 0):.0f} s", flush=True)
    print_table(record)
    print(f"\n{out}")
    sys.exit(report_faults(record, chosen))


def run_part(part: Part, arguments: argparse.Namespace, record: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """What a part found, and how it ended: done, failed (its last words are its fault) or cut off at its limit."""
    line = [sys.executable, str(HERE / "device_parts.py"), part.name, "--device", arguments.device]
    line += ["--quick"] if arguments.quick else []
    if part.name == "loader" and (seconds := step_seconds(record)) is not None:
        line += ["--step-seconds", str(seconds)]
    # A small try is fastest on one thread.
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if arguments.device == "cpu" else {})
    started = time.monotonic()
    # A session of its own, so that what a part has started ends with it.
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parent, env=environment, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"state": "cut off", "seconds": limit, "findings": [], "faults": [f"not finished after {limit:.0f} s"]}
    seconds = time.monotonic() - started
    if process.returncode:
        last = (errors.strip() or output.strip() or f"exit code {process.returncode}").splitlines()
        return {"state": "failed", "seconds": seconds, "findings": [], "faults": [last[-1][:500]], "stderr": errors[-4000:]}
    found = json.loads(output.strip().splitlines()[-1])
    return {"state": "failed" if found["faults"] else "done", "seconds": seconds, **found}


def step_seconds(record: Mapping[str, Any]) -> float | None:
    """Seconds of our training step, if it was measured."""
    findings = record["parts"].get("training", {}).get("findings", [])
    return next((finding["value"] for finding in findings if finding["what"].endswith(": ours")), None)


def require_device(device: str) -> None:
    """Ends the command with one line if there is no such device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        sys.exit(
            f"error: device {device!r} cannot be used here: {str(error).splitlines()[0]}; --device cpu --quick tries every part small."
        )


def device_name(device: str) -> str:
    """`nvidia-h100-80gb-hbm3`, or `cpu`."""
    import torch

    name = "cpu" if device == "cpu" else torch.cuda.get_device_name(device)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def opened(out: Path, device: str, *, is_quick: bool, is_fresh: bool) -> dict[str, Any]:
    """The record of an earlier start on the same code and libraries, or a new one."""
    from gift_shared.version import git_commit
    from gift_train.records.provenance import hardware, versions

    head = {"benchmark": "gpu_check", "device": device, "quick": is_quick, "commit": git_commit(), "versions": versions()}
    if out.is_file() and not is_fresh:
        record: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        if all(record.get(key) == value for key, value in head.items()):
            return record
        print(f"{out.name} is of other code or libraries: all parts are done again.")
    return head | {"date": datetime.now(UTC).date().isoformat(), "hardware": hardware(), "parts": {}}


def write(out: Path, record: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out)


def print_table(record: Mapping[str, Any]) -> None:
    """All that was found, part by part."""
    findings = [finding for result in record["parts"].values() for finding in result["findings"]]
    width = max((len(finding["what"]) for finding in findings), default=0)
    for part in PARTS:
        result = record["parts"].get(part.name)
        if result is None:
            continue
        print(f"\n{part.title} ({result['state']})")
        for finding in result["findings"]:
            bound = "" if finding["target"] is None else f"{'<=' if finding['at_most'] else '>='} {finding['target']:.3g}"
            verdict = {"met": "ok", "MISSED": "WRONG"}.get(finding["verdict"], "")
            print(f"  {finding['what']:{width}}  {finding['value']:12.4g} {finding['unit']:16} {bound:>10}  {verdict}")
        for fault in result["faults"]:
            print(f"  FAULT: {fault}")


def report_faults(record: Mapping[str, Any], chosen: list[Part]) -> int:
    """The exit code."""
    wrong = [part.name for part in chosen if part.is_correctness and record["parts"][part.name]["state"] != "done"]
    slow = [part.name for part in chosen if not part.is_correctness and record["parts"][part.name]["state"] != "done"]
    if slow:
        print(f"Not measured: {', '.join(slow)}.")
    if wrong:
        print(f"NOT SHOWN TO BE RIGHT: {', '.join(wrong)}.")
    return int(bool(wrong))


if __name__ == "__main__":
    main()
