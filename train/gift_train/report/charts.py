"""Charts of the page as plain geometry: pixels, paths and the sentence each point says. The template turns them into SVG.

Drawn here and not by matplotlib, which draws the PNG and SVG files beside the page: inline shapes follow the reader's colour
scheme, answer to mouse and keyboard, and need no library on the page.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gift_train.report.figures import COLOURS, MARKERS

WIDTH, HEIGHT = 340, 190  # of a chart, in its own units; the page scales it
WIDE = (420, 270)  # of a chart that stands alone
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 26
MOST_POINTS = 90  # of a curve that answer; the eye cannot tell more apart
MOST_TASK_TICKS = 12  # numbers of tasks that stand beside each other
_SHAPES = {
    "o": "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0",
    "s": "M-3,-3h6v6h-6z",
    "D": "M0,-4.2L4.2,0L0,4.2L-4.2,0z",
    "^": "M0,-4L4,3.2H-4z",
    "v": "M0,4L4,-3.2H-4z",
    "P": "M-1.3,-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
    "X": "M-4,-2.2L-2.2,-4L0,-1.8L2.2,-4L4,-2.2L1.8,0L4,2.2L2.2,4L0,1.8L-2.2,4L-4,2.2L-1.8,0z",
    "*": "M0,-4.6L1.3,-1.5L4.5,-1.4L2,0.7L2.8,3.9L0,2.1L-2.8,3.9L-2,0.7L-4.5,-1.4L-1.3,-1.5z",
    "<": "M-4,0L3.2,-4V4z",
    ">": "M4,0L-3.2,-4V4z",
}


@dataclass(frozen=True)
class Point:
    """A place in the chart and what it says when it is pointed at."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Line:
    """One recipe's curve or cloud. `style` picks colour and marker; `path` is empty for a cloud."""

    name: str
    style: int
    path: str
    points: Sequence[Point]
    has_markers: bool


@dataclass(frozen=True)
class Chart:
    """Axes with ticks, lines, and dotted rules at some x."""

    title: str
    x_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    rules: Sequence[float] = ()
    width: int = WIDTH
    height: int = HEIGHT


def marker_shape(style: int) -> str:
    """The path of a recipe's marker around (0, 0), as in the matplotlib figures."""
    return _SHAPES[MARKERS[style % len(MARKERS)]]


def styles(recipes: Sequence[str]) -> dict[str, int]:
    """Colour and marker of each recipe, the same in every chart of a page."""
    return {recipe: place % len(COLOURS) for place, recipe in enumerate(recipes)}


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` onto pixels."""

    low: float
    high: float
    first: float
    last: float

    def place(self, value: float) -> float:
        """Pixel of a value."""
        span = self.high - self.low or 1.0
        return round(self.first + (value - self.low) / span * (self.last - self.first), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values within the axis, three to six of them."""
        step = _round_step((self.high - self.low or 1.0) / 4)
        first = math.ceil(self.low / step - 1e-9)
        values = [step * number for number in range(first, first + 7) if step * number <= self.high + 1e-9 * step]
        return [(self.place(value), f"{value:.6g}") for value in values]


def curve_chart(
    title: str, curves: Mapping[str, Sequence[tuple[float, float]]], style: Mapping[str, int], steps: "StepAxis", *, has_markers: bool
) -> Chart:
    """Curves over a shared horizontal axis; `curves` by recipe, points (x, value)."""
    values = [value for curve in curves.values() for _, value in curve if math.isfinite(value)]
    width, height = WIDE if steps.axis.last > WIDTH else (WIDTH, HEIGHT)
    x_axis, y_axis = steps.axis, _value_axis(values, height - BOTTOM)
    lines = []
    for recipe, curve in curves.items():
        kept = _thinned([(x, value) for x, value in curve if math.isfinite(value)])
        points = [Point(x_axis.place(x), y_axis.place(value), f"{recipe}, {steps.say(x)}: {_shown(value)}") for x, value in kept]
        path = "M" + "L".join(f"{point.x:g},{point.y:g}" for point in points)
        lines.append(Line(recipe, style[recipe], path, points, has_markers))
    return Chart(title, steps.label, steps.ticks, y_axis.ticks(), lines, steps.rules, width, height)


@dataclass(frozen=True)
class StepAxis:
    """A horizontal axis that knows how to call its places."""

    label: str
    axis: Axis
    ticks: Sequence[tuple[float, str]]
    rules: Sequence[float]
    names: Sequence[str]
    task_length: int | None = None  # None: x counts evaluations, else x counts steps over all tasks

    def say(self, x: float) -> str:
        """A place in words."""
        if self.task_length is None:
            return self.names[int(x)]
        return f"{self.names[int(x) // self.task_length]} step {int(x) % self.task_length}"


def evaluations_axis(datasets: Sequence[str], learned: int) -> StepAxis:
    """0 = zero-shot, then after each task; a rule where dataset number `learned` was learned."""
    axis = Axis(0, len(datasets), LEFT, WIDTH - RIGHT)
    names = ["zero-shot", *(f"after {name}" for name in datasets)]
    ticks = _task_ticks(range(len(datasets) + 1), axis)
    return StepAxis("after task (0 = zero-shot)", axis, ticks, [axis.place(learned + 1)], names)


def learned_axis(datasets: Sequence[str]) -> StepAxis:
    """After each task, from 1; of a chart that stands alone."""
    axis = Axis(1, len(datasets), LEFT, WIDE[0] - RIGHT)
    ticks = _task_ticks(range(1, len(datasets) + 1), axis)
    return StepAxis("after step", axis, ticks, [], ["", *(f"after {name}" for name in datasets)])


def training_axis(datasets: Sequence[str], task_length: int) -> StepAxis:
    """Steps over all tasks, with a rule where each next task begins."""
    axis = Axis(0, task_length * len(datasets), LEFT, WIDTH - RIGHT)
    starts = [axis.place(task_length * number) for number in range(len(datasets))]
    ticks = [(axis.place(task_length * (number - 0.5)), str(number)) for number in _sparse(range(1, len(datasets) + 1))]
    return StepAxis("task", axis, ticks, starts[1:], datasets, task_length)


def _task_ticks(numbers: range, axis: Axis) -> list[tuple[float, str]]:
    return [(axis.place(number), str(number)) for number in _sparse(numbers)]


def _sparse(numbers: range) -> list[int]:
    """All of the numbers, or those that one step of 2, 5, 10 ... divides, so that few enough stand beside each other."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(numbers) <= MOST_TASK_TICKS * step or step == 1000)
    return [number for number in numbers if number % step == 0]


def scatter_chart(title: str, clouds: Mapping[str, Sequence[tuple[float, float, str]]], style: Mapping[str, int], x_label: str) -> Chart:
    """Points (x, y, name) by recipe."""
    width, height = WIDE
    places = [point for cloud in clouds.values() for point in cloud]
    x_axis = _value_axis([x for x, _, _ in places], LEFT, width - RIGHT)
    y_axis = _value_axis([y for _, y, _ in places], height - BOTTOM, TOP)
    lines = [
        Line(recipe, style[recipe], "", [Point(x_axis.place(x), y_axis.place(y), f"{recipe}, {name}") for x, y, name in cloud], True)
        for recipe, cloud in clouds.items()
    ]
    return Chart(title, x_label, x_axis.ticks(), y_axis.ticks(), lines, width=width, height=height)


def _value_axis(values: Sequence[float], first: float = HEIGHT - BOTTOM, last: float = TOP) -> Axis:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return Axis(low - margin if low < 0 or low > margin else 0.0, high + margin, first, last)


def _thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(curve) <= MOST_POINTS:
        return curve
    return [curve[number * (len(curve) - 1) // (MOST_POINTS - 1)] for number in range(MOST_POINTS)]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return power * next((factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999), 10)


def _shown(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"
