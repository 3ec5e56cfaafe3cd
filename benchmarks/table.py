"""Print the results of all benchmarks as the table that README shows: `python benchmarks/table.py`."""

import json
from typing import Any

from measure import RESULTS


def main() -> None:
    """One line per finding that has a target, in the order of the files' names."""
    print("| what | measured | target | |\n|---|---:|---:|---|")
    for path in sorted(set(RESULTS.glob("*.json")) - set(RESULTS.glob("*_quick.json"))):
        record = json.loads(path.read_text(encoding="utf-8"))
        for finding in record["findings"]:
            if finding["target"] is not None:
                print(_row(finding))


def _row(finding: dict[str, Any]) -> str:
    target = f"{'≤' if finding['at_most'] else '≥'} {finding['target']:g} {finding['unit']}"
    return f"| {finding['what']} | {finding['value']:.3g} {finding['unit']} | {target} | {finding['verdict']} |"


if __name__ == "__main__":
    main()
