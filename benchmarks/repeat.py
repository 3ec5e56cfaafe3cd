"""A benchmark several times over, and how far apart its lines lie: `python benchmarks/repeat.py training_step.py [--runs 3] [its options]`.

Its results file then holds the median of each line, with the lowest and the highest as `low` and `high`; the details are the last run's.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import RESULTS, Finding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", help="file name, such as training_step.py")
    parser.add_argument("--runs", type=int, default=3)
    arguments, options = parser.parse_known_args()
    script = Path(__file__).with_name(arguments.benchmark)
    records, written = [], RESULTS
    for number in range(arguments.runs):
        print(f"run {number + 1} of {arguments.runs}", file=sys.stderr)
        before = {path: path.stat().st_mtime_ns for path in RESULTS.glob("*.json")}
        subprocess.run([sys.executable, script, *options], check=True)
        [written] = [path for path in RESULTS.glob("*.json") if before.get(path) != path.stat().st_mtime_ns]
        records.append(json.loads(written.read_text(encoding="utf-8")))
    merged = records[-1] | {"runs": arguments.runs, "findings": spread([record["findings"] for record in records])}
    written.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
    print(written)


def spread(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each line's median over the runs, and the lowest and the highest value of any of their turns; the verdict is the median's."""
    lines = []
    for same in zip(*runs, strict=True):
        values = [finding["value"] for finding in same]
        fields = {key: same[0][key] for key in ("what", "unit", "target", "at_most")}
        low, high = (choose(finding.get(end, finding["value"]) for finding in same) for choose, end in ((min, "low"), (max, "high")))
        lines.append(Finding(**fields, value=statistics.median(values), low=low, high=high).record())
    return lines


if __name__ == "__main__":
    main()
