"""What every benchmark shares: variants timed turn by turn in one run, peak memory in a process of its own, a table and a JSON file."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))  # readme.py has one of its own


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table: what was measured, and the target it was measured against.

    value: in `unit`; a ratio is how many times faster (or smaller) than the plain way. target: None where there is none;
    `at_most` says that the value should stay below it. low and high: the spread over several turns or runs, where there were any.
    """

    what: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False
    low: float | None = None
    high: float | None = None

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        spread = {} if self.low is None else {"low": self.low, "high": self.high}
        fields = {key: value for key, value in vars(self).items() if key not in ("low", "high")}
        return {**fields, "verdict": self.verdict, **spread}

    @property
    def verdict(self) -> str:
        """met, MISSED, or nothing to meet."""
        if self.target is None:
            return ""
        return "met" if (self.value <= self.target if self.at_most else self.value >= self.target) else "MISSED"

    @property
    def shown_target(self) -> str:
        """The bound with its direction."""
        return "" if self.target is None else f"{'<=' if self.at_most else '>='} {self.target:g}"


def seconds_each(variants: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of one call of each variant, see `times_each`."""
    return {name: statistics.median(times) for name, times in times_each(variants, rounds=rounds, warmup=warmup).items()}


def times_each(variants: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of one call of each variant in each round. They take turns, so that what else the machine does meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + rounds):
        for name, call in variants.items():
            started = time.perf_counter()
            call()
            if number >= warmup:
                taken[name].append(time.perf_counter() - started)
    return taken


def peak_gigabytes() -> float:
    """Most memory this process has held so far, resident, in GB (10^9 bytes). Call it in a process of its own.

    Not getrusage's ru_maxrss, which on Linux starts at what the parent held when it started this process.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024 / 1e9


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark file again with these arguments and read the JSON object on the last line it prints."""
    done = subprocess.run([sys.executable, script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def report(benchmark: str, findings: Sequence[Finding], details: Mapping[str, Any], *, is_quick: bool = False, device: str = "cpu") -> Path:
    """Print the findings as a table and write them, with all that was measured, to results/<benchmark>[_gpu][_quick].json.

    Returns its path. A try, and what another device does, never takes the place of a measurement.
    """
    from gift_shared.version import git_commit
    from gift_train.records.provenance import hardware, versions  # imports torch, which must not count as a measured process's memory

    name = f"{benchmark}{'' if device == 'cpu' else '_gpu'}{'_quick' if is_quick else ''}"
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.what:{width}}  {finding.value:10.2f} {finding.unit:12} {finding.shown_target:>10}  {finding.verdict}")
    record = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": git_commit(),
        "hardware": hardware(),
        "versions": versions(),
        "findings": [finding.record() for finding in findings],
        "details": details,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path
