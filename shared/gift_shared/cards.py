"""Markdown cards (README.md) of what is made for others, and the seal that tells whether one is still as it was written.

The last line of a card holds the digest of all above it. A card that somebody has changed is theirs, and is never written over.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

CARD_FILE = "README.md"
MOST_LINES = 40  # of a table: a pool of a thousand sources stays a page
Lines = Sequence[tuple[str, ...]]

_SEAL = re.compile(r"<!-- gift-(?:generate|train): (?P<facts>[^<>]*)card (?P<card>[0-9a-f]{64}) -->\n?\Z")


@dataclass(frozen=True)
class Seal:
    """What the last line of a card says. `facts`: what its program noted there; is_untouched: the rest is as it was written."""

    facts: str
    is_untouched: bool


def sealed(text: str, program: str, facts: str = "") -> str:
    """The card with its last line."""
    return f"{text}<!-- {program}: {facts}card {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def read_seal(content: bytes) -> Seal | None:
    """The seal of a card; None for a file that none of our programs has written."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    match = _SEAL.search(text)
    return None if match is None else Seal(match["facts"], hashlib.sha256(text[: match.start()].encode()).hexdigest() == match["card"])


def is_untouched(content: bytes) -> bool:
    """Whether a card is as one of our programs wrote it."""
    seal = read_seal(content)
    return seal is not None and seal.is_untouched


def table(header: tuple[str, ...], lines: Lines) -> str:
    """A table, of a long one its beginning and how many lines more there are."""
    more = [(f"and {len(lines) - MOST_LINES:,} more", *[""] * (len(header) - 1))] if len(lines) > MOST_LINES else []
    cells = [header, ("---",) * len(header), *lines[:MOST_LINES], *more]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def code(text: str) -> str:
    """As code in a cell of a table, without the signs that would end either; nothing if there is nothing."""
    shown = plain(text).replace("|", "/").replace("`", "'")
    return f"`{shown}`" if shown else ""


def plain(text: str) -> str:
    """On one line."""
    return " ".join(text.split())
