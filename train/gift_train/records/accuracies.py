"""accuracy_matrix.json while a run fills it: rows of its order's own label space, and of further ones beside them. No torch here."""

from collections.abc import Mapping, Sequence
from typing import Any

from gift_shared.manifests import LabelSpace

Row = Mapping[LabelSpace, Mapping[str, list[float]]]  # by label space and reading of the weights; percent, a value per dataset


def begun(order: str, datasets: Sequence[str], spaces: Sequence[LabelSpace]) -> dict[str, Any]:
    """Of a run that has evaluated nothing. spaces: the first is the order's own."""
    accuracies: dict[str, Any] = {"order": order, "datasets": list(datasets), "label_space": spaces[0], "zero_shot": None, "matrix": []}
    if len(spaces) > 1:
        accuracies["label_spaces"] = {space: {"zero_shot": None, "matrix": []} for space in spaces[1:]}
    return accuracies


def own_space(accuracies: Mapping[str, Any]) -> LabelSpace:
    """That of `matrix`; files of before do not name it."""
    space: LabelSpace = accuracies.get("label_space", "known")
    return space


def further_spaces(accuracies: Mapping[str, Any]) -> dict[LabelSpace, dict[str, Any]]:
    """{"zero_shot", "matrix" and maybe "readings"} of each label space beside the order's own."""
    found: dict[LabelSpace, dict[str, Any]] = accuracies.get("label_spaces", {})
    return found


def set_zero_shot(accuracies: dict[str, Any], row: Row) -> None:
    """Note what the model scored before the first task; of its readings there is one then."""
    for space, values in _by_space(accuracies).items():
        values["zero_shot"] = row[space][""]


def add_row(accuracies: dict[str, Any], row: Row) -> None:
    """Note what the model scored after one more task."""
    for space, values in _by_space(accuracies).items():
        values["matrix"].append(row[space][""])
        for reading, numbers in row[space].items():
            if reading:
                values.setdefault("readings", {}).setdefault(reading, []).append(numbers)


def _by_space(accuracies: dict[str, Any]) -> dict[LabelSpace, dict[str, Any]]:
    return {own_space(accuracies): accuracies, **further_spaces(accuracies)}
