"""A table of finished cells as aligned text, Markdown and LaTeX. What the cells say is decided elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A heading and lines of equally many cells; the first column is text, the others are numbers."""

    heading: Sequence[str]
    lines: Sequence[Sequence[str]]


def grid_text(grid: Grid) -> str:
    """Aligned columns for a terminal."""
    cells = [grid.heading, *grid.lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(grid.heading))]
    lines = []
    for name, *values in cells:
        padded = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def grid_markdown(grid: Grid) -> str:
    """A GitHub table."""
    ruler = ["---", *["---:"] * (len(grid.heading) - 1)]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (grid.heading, *grid.lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ruler, *lines[1:]))


def grid_latex(grid: Grid) -> str:
    """A tabular with the rules of the package booktabs."""
    columns = "l" + "r" * (len(grid.heading) - 1)
    heading, *lines = [" & ".join(map(latex_escaped, line)) + r" \\" for line in (grid.heading, *grid.lines)]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", r"\toprule", heading, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"])


def latex_escaped(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    return "".join(LATEX.get(character, character) for character in text)
