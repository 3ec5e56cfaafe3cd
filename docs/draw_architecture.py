"""Draws docs/pictures/architecture.svg from the code's own imports: python docs/draw_architecture.py

A box is a room (a folder, or a module that stands alone) of one of the three packages; below it stands what it imports. An arrow is drawn
where a room imports another and no longer way leads there, so that what is drawn follows from the code and nothing is drawn twice.
"""

import ast
import html
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "gift_generate": "generate/gift_generate", "gift_shared": "shared/gift_shared", "gift_datasets": "shared/gift_datasets",
    "gift_train": "train/gift_train",
}  # fmt: skip
SHARED = ("gift_shared", "gift_datasets")  # drawn as one room, below both stages
PICTURE = ROOT / "docs/pictures/architecture.svg"
BOX, ROW, GAP, MARGIN = (196, 62), 98, 20, 24  # pixels: a room, the distance of two floors, of two rooms, of the picture's edge
INK, PAPER, LINE, FILL = "#1f2933", "#ffffff", "#7b8794", {"gift_generate": "#fdebd0", "gift_shared": "#e8eaed", "gift_train": "#dbeafe"}

Graph = dict[str, set[str]]  # room -> rooms it imports


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """`gift_train.data` for any module below it; what both stages share is one room. None for what is not ours."""
    package, _, rest = name.partition(".")
    if package not in PACKAGES:
        return None
    return SHARED[0] if package in SHARED else package if not rest else f"{package}.{rest.partition('.')[0]}"


def graph() -> Graph:
    """Which room imports which."""
    found: Graph = {}
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
            room = room_of(name.removesuffix(".__init__"))
            if room is None or (room == package and package not in SHARED):
                continue
            targets = {target for target in map(room_of, imports(path)) if target is not None}
            found.setdefault(room, set()).update(targets - {room, "gift_train", "gift_generate"})
    return found


def floors(rooms: Graph) -> dict[str, int]:
    """A room stands one floor above the highest that it imports. Raises ValueError for a circle."""
    found: dict[str, int] = {}

    def floor(room: str, above: tuple[str, ...] = ()) -> int:
        if room in above:
            raise ValueError(f"circle: {' -> '.join((*above, room))}")
        if room not in found:
            found[room] = max((1 + floor(target, (*above, room)) for target in rooms.get(room, ())), default=0)
        return found[room]

    for room in rooms:
        floor(room)
    return found


def without_detours(rooms: Graph) -> Graph:
    """The graph without arrows that a longer way replaces."""

    def below(room: str) -> set[str]:
        return {one for target in rooms.get(room, ()) for one in (target, *below(target))}

    return {room: {target for target in targets if not any(target in below(other) for other in targets)} for room, targets in rooms.items()}


def drawing(rooms: Graph) -> str:
    """The picture as SVG text; the same rooms and arrows give the same text."""
    height_of = floors(rooms)
    top = max(height_of.values())
    places: dict[str, tuple[float, float]] = {}
    widest = {package: max(_on_floor(rooms, height_of, package, floor) for floor in range(top + 1)) for package in PACKAGES}
    left, edges = float(MARGIN), {}
    for package in ("gift_generate", "gift_train"):
        width = widest[package] * (BOX[0] + GAP) - GAP
        edges[package] = (left, width)
        for floor in range(top + 1):
            row = [room for room in sorted(rooms) if room.startswith(f"{package}.") and height_of[room] == floor]
            start = left + (width - (len(row) * (BOX[0] + GAP) - GAP)) / 2
            for number, room in enumerate(row):
                places[room] = (start + number * (BOX[0] + GAP), MARGIN + 30 + (top - floor) * ROW)
        left += width + 3 * GAP
    total = left - 3 * GAP + MARGIN
    places["gift_shared"] = (MARGIN, MARGIN + 30 + top * ROW)
    shapes = [_arrow(places[room], places[target]) for room, targets in without_detours(rooms).items() for target in sorted(targets)
              if target != "gift_shared"]  # fmt: skip
    shapes += [_box(room, places[room], BOX[0]) for room in sorted(rooms) if room != "gift_shared"]
    shapes.append(_box("gift_shared", places["gift_shared"], total - 2 * MARGIN))
    shapes += [_text(x + width / 2, MARGIN + 8, title, "700 15px") for (x, width), title in zip(
        edges.values(), ("stage 1: generate", "stage 2: train"), strict=True)]  # fmt: skip
    size = f'width="{total:g}" height="{2 * MARGIN + 30 + top * ROW + BOX[1]:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif" font-size="13">'
    marker = (
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0L8,4L0,8z" fill="{LINE}"/></marker></defs>'
    )
    return "\n".join([head, marker, f'<rect width="100%" height="100%" fill="{PAPER}"/>', *shapes, "</svg>", ""])


def _on_floor(rooms: Graph, height_of: dict[str, int], package: str, floor: int) -> int:
    return sum(room.startswith(f"{package}.") and height_of[room] == floor for room in rooms)


def _box(room: str, place: tuple[float, float], width: float) -> str:
    x, y = place
    package = room.partition(".")[0]
    name = room.partition(".")[2] or ", ".join(SHARED)
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX[1]}" rx="7" fill="{FILL[package]}" stroke="{LINE}"/>'
    lines = [_text(x + width / 2, y + 37 + 14 * number, line, "11px") for number, line in enumerate(_about(room))]
    return shape + _text(x + width / 2, y + 19, name, "700 14px") + "".join(lines)


def _about(room: str) -> list[str]:
    """What a room says of itself, in the two lines it has room for."""
    package, _, name = room.partition(".")
    base = ROOT / PACKAGES[package] / name
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    lines = textwrap.wrap(text, 140 if package == room else 33, max_lines=2, placeholder=" …")
    return [line.replace("->", "→") for line in lines]


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + BOX[0] / 2, start[1] + BOX[1]
    x2, y2 = end[0] + BOX[0] / 2, end[1]
    bend = (y2 - y1) / 2
    curve = f"M{x1:g},{y1:g}C{x1:g},{y1 + bend:g} {x2:g},{y2 - bend:g} {x2:g},{y2:g}"
    return f'<path d="{curve}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>'


def _text(x: float, y: float, text: str, font: str) -> str:
    weight, _, size = font.rpartition(" ")
    bold = f' font-weight="{weight}"' if weight else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" fill="{INK}" font-size="{size}"{bold}>{html.escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(drawing(graph()), encoding="utf-8")
