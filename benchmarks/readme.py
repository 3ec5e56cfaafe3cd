"""All that README and docs/speed.md claim of a CPU's speed, measured again: `python -m benchmarks.readme [--runs 3]`, or `make bench`.

    python -m benchmarks.readme                 # over half an hour on two quiet cores; the same command goes on with what is missing
    python -m benchmarks.readme --quick         # that every part runs; measures nothing
    python -m benchmarks.readme --check         # whether the pages say what the results say; no measurement

Parts run one after the other, small ones first, each in processes of its own. What they found is kept in benchmarks/results/readme.json
after every part, each line with its lowest and highest value over the runs: started again on the same code, what is done is not done
again. compare.py holds two such files against each other.

A page claims a number in a table's row whose last cell names lines of the results, `<benchmark>: <line>` each in backquotes, and whose
second cell has a number for each of them, in their order. A line is looked up in readme.json, else in the benchmark's own file.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = ("README.md", "docs/speed.md")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
CODE = re.compile(r"`(\w+): ([^`]+)`")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A benchmark as it is run here. `repeats_itself`: its own rounds are the runs, where starting anew would cost more than a turn."""

    name: str
    options: tuple[str, ...] = ()
    repeats_itself: bool = False

    def command(self, runs: int, *, is_quick: bool) -> list[str]:
        """By repeat.py, so that every line has its spread; a try is quick and once."""
        runs = 1 if is_quick else runs
        options = [*self.options, *(["--quick"] if is_quick else []), *(["--rounds", str(runs)] if self.repeats_itself else [])]
        starts = 1 if self.repeats_itself else runs
        return [sys.executable, str(HERE / "repeat.py"), f"{self.name}.py", "--runs", str(starts), *options]


PARTS = (
    Part(name="shard_writer"),
    Part(name="start", options=("--rounds", "1")),
    Part(name="streaming", options=("--readme",)),
    Part(name="evaluation", options=("--rounds", "1")),
    Part(name="generation", options=("--readme",)),
    Part(name="training_step", options=("--readme",), repeats_itself=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="of each benchmark")
    parser.add_argument("--quick", action="store_true", help="small sizes, once: that every part runs")
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS], help="this part; repeatable")
    parser.add_argument("--fresh", action="store_true", help="do again what an earlier start has done")
    parser.add_argument("--check", action="store_true", help="measure nothing: compare the pages with the results there are")
    parser.add_argument("--out", type=Path, help="JSON file of the results  [default: benchmarks/results/readme.json]")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(report_claims())
    out = arguments.out or RESULTS / f"readme{'_quick' if arguments.quick else ''}.json"
    record = opened(out, arguments.runs, is_quick=arguments.quick, is_fresh=arguments.fresh)
    chosen = [part for part in PARTS if part.name in (arguments.only or [one.name for one in PARTS])]
    failed = []
    for number, part in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {part.name}", end=" ", flush=True)
        if part.name in record["parts"]:
            print("done before", flush=True)
            continue
        started = time.monotonic()
        findings = run_part(part, arguments.runs, is_quick=arguments.quick)
        seconds = time.monotonic() - started
        print(f"{'done' if findings else 'FAILED'}, {seconds:.0f} s", flush=True)
        if not findings:
            failed.append(part.name)
            continue
        record["parts"][part.name] = {"seconds": round(seconds, 1), "findings": findings}
        write(out, record)
    print_table(record)
    print(f"\n{out}")
    if failed:
        sys.exit(f"error: no results of {', '.join(failed)}; the same command tries them again.")
    if not arguments.quick and arguments.out is None:
        report_claims()


def run_part(part: Part, runs: int, *, is_quick: bool) -> list[dict[str, Any]]:
    """Its lines, named after it; none if it failed, whose last words are then printed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"BENCHMARK_RESULTS": folder}
        command = part.command(runs, is_quick=is_quick)
        done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
        written = list(Path(folder).glob("*.json"))
        if done.returncode or not written:
            print(done.stderr.strip()[-2000:], file=sys.stderr)
            return []
        [path] = written
        findings = json.loads(path.read_text(encoding="utf-8"))["findings"]
    return [{**finding, "what": f"{part.name}: {finding['what']}"} for finding in findings]


def opened(out: Path, runs: int, *, is_quick: bool, is_fresh: bool) -> dict[str, Any]:
    """The record of an earlier start on the same code, libraries and machine, or a new one."""
    from gift_shared.version import git_commit
    from gift_train.records.provenance import hardware, versions

    name = "readme_quick" if is_quick else "readme"
    head = {"benchmark": name, "runs": runs, "commit": git_commit(), "hardware": hardware(), "versions": versions()}
    if out.is_file() and not is_fresh:
        record: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        if all(record.get(key) == value for key, value in head.items()):
            return record
        print(f"{out.name} is of other code, libraries, hardware or --runs: all parts are done again.")
    return head | {"date": datetime.now(UTC).date().isoformat(), "command": "python -m benchmarks.readme", "parts": {}, "findings": []}


def write(out: Path, record: dict[str, Any]) -> None:
    """Whole or not at all; all lines stand together too, where compare.py looks for them."""
    record["findings"] = [finding for part in record["parts"].values() for finding in part["findings"]]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out)


def print_table(record: Mapping[str, Any]) -> None:
    """All lines with their spread."""
    width = max((len(finding["what"]) for finding in record["findings"]), default=0)
    for finding in record["findings"]:
        spread = f"{finding['low']:.3g} to {finding['high']:.3g}" if "low" in finding else ""
        print(f"{finding['what']:{width}}  {finding['value']:10.4g} {finding['unit']:10} {spread:>20}  {finding['verdict']}")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A number on a page, and the line of the results that it is of. `found` is None where there is no such line."""

    page: str
    said: str
    line: str
    found: float | None

    @property
    def holds(self) -> bool:
        """Whether the result, rounded as far as the page rounds, is what the page says."""
        if self.found is None:
            return False
        decimals = len(self.said.partition(".")[2])
        said = float(self.said.replace(",", ""))
        as_shown = round(self.found, decimals)
        to_hundreds = round(self.found, -2) if said % 100 == 0 and decimals == 0 else as_shown
        return said in (as_shown, to_hundreds)


def report_claims() -> int:
    """Print what no longer holds; the exit code."""
    claims = list(claims_of_pages())
    wrong = [claim for claim in claims if not claim.holds]
    for claim in wrong:
        found = "no such line" if claim.found is None else f"{claim.found:.4g}"
        print(f"{claim.page} says {claim.said}, the results say {found}: {claim.line}")
    print(f"{len(claims) - len(wrong)} of {len(claims)} numbers of {' and '.join(PAGES)} are those of the results.")
    return int(bool(wrong))


def claims_of_pages() -> Iterator[Claim]:
    """Every number that names its line."""
    for page in PAGES:
        for row in (HERE.parent / page).read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in row.strip().strip("|").split("|")] if row.startswith("|") else []
            lines = [": ".join(match) for match in CODE.findall(cells[-1])] if cells else []
            if lines:
                yield from (
                    Claim(page=page, said=said, line=line, found=result(line))
                    for said, line in zip(NUMBER.findall(cells[1]), lines, strict=True)
                )


def result(line: str) -> float | None:
    """The value of `<benchmark>: <line>`."""
    benchmark, _, what = line.partition(": ")
    for path, name in ((RESULTS / "readme.json", line), (RESULTS / f"{benchmark}.json", what)):
        if path.is_file():
            for finding in json.loads(path.read_text(encoding="utf-8"))["findings"]:
                if finding["what"] == name:
                    return float(finding["value"])
    return None


if __name__ == "__main__":
    main()
