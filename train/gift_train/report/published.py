"""Printed numbers that stand beside ours, where the order of tasks is the one they were taken on."""

from dataclasses import dataclass

from gift_train.report.paper_tables.definition import load_table, table_names

PUBLISHED_WORLD = "mtil"


@dataclass(frozen=True)
class PrintedRow:
    """A printed row of percentages and where it stands; `doubts` says what is odd about it."""

    numbers: dict[str, float]
    source: str
    doubts: tuple[str, ...]


def printed_rows(order: str) -> dict[str, PrintedRow]:
    """By recipe, the first table that prints it on this order. Empty for an order that nothing was printed about."""
    found: dict[str, PrintedRow] = {}
    for name in table_names():
        table = load_table(name)
        if table.orders.get(PUBLISHED_WORLD) != order:
            continue
        for row in table.rows:
            if row.published is not None and row.recipe not in found:
                notes = [row.about, *(row.doubtful or {}).values()]
                doubts = tuple(table.notes[note].text for note in notes if note is not None)
                found[row.recipe] = PrintedRow(vars(row.published), table.source, doubts)
    return found
