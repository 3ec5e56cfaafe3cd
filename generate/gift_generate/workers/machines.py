"""What machines differ in that the last bits of an image may depend on: equal bytes are promised on equal hardware and versions alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NAME_OF_MODEL = "model"  # as it was asked for: what it holds is a setting, and must agree


@dataclass(frozen=True)
class MachineKind:
    """Hardware and versions that several workers share, and the ranks of those workers."""

    machine: Mapping[str, str]
    ranks: Sequence[int]


def other_machine_warning(first: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """What to tell a worker whose machine differs from the one that a folder was begun on; None if nothing does."""
    differing = _differing([first, here])
    if not differing:
        return None
    told = "; ".join(f"{name} {first[name]} there, {here[name]} here" for name in differing)
    return (
        f"this folder was begun on another machine: {told}. An image made here may differ in its last bits from the same one made there: "
        "bytes are the same on equal hardware and versions"
    )


def machine_kinds(workers: Iterable[tuple[int, Mapping[str, str]]]) -> list[MachineKind]:
    """The different machines of workers given as (rank, machine), in the order they are met; a worker that says nothing is none."""
    kinds: list[tuple[Mapping[str, str], list[int]]] = []
    for rank, machine in workers:
        if not machine:
            continue
        same = next((ranks for known, ranks in kinds if not _differing([known, machine])), None)
        if same is None:
            kinds.append((machine, [rank]))
        elif rank not in same:
            same.append(rank)
    return [MachineKind(machine, ranks) for machine, ranks in kinds]


def kinds_lines(kinds: Sequence[MachineKind]) -> list[str]:
    """A line for each kind, naming what it differs in; none for one kind alone."""
    if len(kinds) < 2:
        return []
    differing = _differing([kind.machine for kind in kinds])
    lines = [f"machines   {len(kinds)} kinds: an image may differ in its last bits between them"]
    for kind in kinds:
        ranks = ", ".join(map(str, kind.ranks[:8])) + (f" and {len(kind.ranks) - 8} more" if len(kind.ranks) > 8 else "")
        told = ", ".join(f"{name} {kind.machine[name]}" for name in differing if name in kind.machine)
        lines.append(f"           {told} (rank {ranks})")
    return lines


def _differing(machines: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of what is not the same on all machines that tell it; a version that did not record something says nothing of it."""
    names = dict.fromkeys(name for machine in machines for name in machine if name != NAME_OF_MODEL)
    return [name for name in names if len({machine[name] for machine in machines if name in machine}) > 1]
