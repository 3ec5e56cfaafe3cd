"""Whether a benchmark's lines became slower by more than noise: `python benchmarks/compare.py OLD.json NEW.json`.

Both files are results of one benchmark on one machine; those of repeat.py tell their own spread. A line is slower (or takes more memory)
if it is worse by more than NOISE and the two spreads do not touch. Exit code 1 if any line is, or one of OLD's is gone.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NOISE = 0.10  # of a single run on a machine that does other things besides
BETTER_IF_SMALLER = ("s", "s/step", "GB", "MB")
BETTER_IF_LARGER = ("x", "images/s")


def main() -> None:
    match sys.argv[1:]:
        case [old, new]:
            records = [json.loads(Path(file).read_text(encoding="utf-8")) for file in (old, new)]
        case _:
            sys.exit(__doc__)
    if records[0]["benchmark"] != records[1]["benchmark"]:
        sys.exit(f"error: {old} is of {records[0]['benchmark']!r} and {new} of {records[1]['benchmark']!r}; compare two of one benchmark.")
    for key in ("hardware", "versions"):
        if records[0][key] != records[1][key]:
            print(f"Other {key}: {records[0][key]} before, {records[1][key]} after. Differences may be theirs.")
    lines = list(compared(*(record["findings"] for record in records)))
    width = max((len(what) for what, *_ in lines), default=0)
    for what, before, after, verdict in lines:
        print(f"{what:{width}}  {before:>12} {after:>12}  {verdict}")
    sys.exit(any(verdict in ("SLOWER", "MORE", "GONE") for *_, verdict in lines))


def compared(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """What a line measures, its value before and after, and a word for it; lines that measure neither time nor memory have none."""
    after = {finding["what"]: finding for finding in new}
    for finding in old:
        other = after.pop(finding["what"], None)
        yield finding["what"], shown(finding), "-" if other is None else shown(other), "GONE" if other is None else verdict(finding, other)
    for finding in after.values():
        yield finding["what"], "-", shown(finding), "new"


def verdict(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """SLOWER, MORE (memory), better, or nothing if the two are alike."""
    if old["unit"] not in BETTER_IF_SMALLER + BETTER_IF_LARGER or not old["value"]:
        return ""
    gain = (new["value"] / old["value"] - 1) * (1 if old["unit"] in BETTER_IF_LARGER else -1)
    touches = old.get("low", old["value"]) <= new.get("high", new["value"]) and new.get("low", new["value"]) <= old.get(
        "high", old["value"]
    )
    if abs(gain) <= NOISE or ("low" in old and "low" in new and touches):
        return ""
    if gain > 0:
        return "better"
    return "MORE" if old["unit"] in ("GB", "MB") else "SLOWER"


def shown(finding: Mapping[str, Any]) -> str:
    return f"{finding['value']:.3g} {finding['unit']}"


if __name__ == "__main__":
    main()
