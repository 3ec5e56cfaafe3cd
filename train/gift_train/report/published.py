"""Printed numbers that stand beside ours, where the order of tasks is the one they were taken on."""

from dataclasses import dataclass

from gift_train.report.paper_tables.definition import Published, load_table, table_names


@dataclass(frozen=True)
class PrintedRow:
    """A printed row of percentages and where it stands; `doubts` says where a number was read and what is odd about it."""

    numbers: Published
    source: str
    doubts: tuple[str, ...]


def printed_rows(order: str) -> dict[str, PrintedRow]:
    """By recipe, the first table that prints it on this order. Empty for an order that nothing was printed about."""
    found: dict[str, PrintedRow] = {}
    for name in table_names():
        table = load_table(name)
        if order not in table.printed_orders:
            continue
        for row in table.rows:
            numbers = table.printed(row, order)
            if numbers is not None and row.recipe is not None and row.recipe not in found:
                notes = [*row.notes, *(row.doubtful or {}).values()]
                found[row.recipe] = PrintedRow(numbers, table.source, tuple(table.notes[note].text for note in notes))
    return found
