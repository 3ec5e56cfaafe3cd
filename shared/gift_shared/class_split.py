"""One dataset cut by its classes into the steps of class-incremental learning: which labels each step learns. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

from gift_shared.errors import ManifestError


@dataclass(frozen=True, kw_only=True)
class ClassSplit:
    """A dataset and its labels, step after step, in the order in which they are learned."""

    dataset: str
    steps: tuple[tuple[int, ...], ...]

    def step_names(self) -> tuple[str, ...]:
        """What the steps are called as tasks: the dataset and a number from 01 on, `cifar100-01`."""
        digits = max(2, len(str(len(self.steps))))
        return tuple(f"{self.dataset}-{number:0{digits}d}" for number in range(1, len(self.steps) + 1))


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """What an order's manifest says of its steps, see `split_classes`."""

    num_steps: int
    first_step_classes: int | None = None
    class_order: tuple[int, ...] | None = None


def split_classes(where: str, dataset: str, num_classes: int, rule: SplitRule) -> ClassSplit:
    """Steps of equal size, or a first one of its own size and equal ones after it.

    Classes are taken in label order unless the rule has an order of its own. `where` stands in the messages.
    Raises ManifestError if the steps do not divide the classes, or the order is no permutation of the labels.
    """
    labels = range(num_classes) if rule.class_order is None else rule.class_order
    _require_permutation(where, dataset, num_classes, labels)
    sizes = _sizes(where, dataset, num_classes, rule)
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return ClassSplit(dataset=dataset, steps=tuple(tuple(labels[end - size : end]) for size, end in zip(sizes, ends, strict=True)))


def _sizes(where: str, dataset: str, num_classes: int, rule: SplitRule) -> list[int]:
    first, num_steps = rule.first_step_classes, rule.num_steps
    if first is None:
        if num_classes % num_steps:
            raise ManifestError(
                f"{where}: steps = {num_steps} does not divide the {num_classes} classes of {dataset}. "
                f"Possible are {_told(divisors(num_classes))}, or another number with first_step_classes."
            )
        return [num_classes // num_steps] * num_steps
    others, left = num_steps - 1, num_classes - first
    if others == 0 and left == 0:
        return [first]
    if others == 0 or left < others or left % others:
        possible = [number + 1 for number in divisors(left)] if left > 0 else [1]
        raise ManifestError(
            f"{where}: first_step_classes = {first} leaves {max(left, 0)} of the {num_classes} classes of {dataset}, which the other "
            f"{others} of steps = {num_steps} do not divide. With it, steps may be {_told(possible)}."
        )
    return [first] + [left // others] * others


def divisors(number: int) -> list[int]:
    """All whole numbers that divide it, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _require_permutation(where: str, dataset: str, num_classes: int, labels: Sequence[int]) -> None:
    found = set(labels)
    told = f"{where}: class_order is no order of the labels 0 to {num_classes - 1} of {dataset}"
    stray = next((label for label in labels if not 0 <= label < num_classes), None)
    if stray is not None:
        raise ManifestError(f"{told}: there is no label {stray}.")
    if len(found) < len(labels):
        twice = next(label for place, label in enumerate(labels) if label in labels[:place])
        raise ManifestError(f"{told}: {twice} stands twice.")
    if len(found) < num_classes:
        raise ManifestError(f"{told}: {min(set(range(num_classes)) - found)} is missing, {num_classes - len(found)} in all.")


def _told(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
