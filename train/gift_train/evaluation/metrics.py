"""The four numbers of continual learning on CLIP, from an accuracy matrix in percent. Computed here and nowhere else.

A[i][j], zero-based here: accuracy after task i on dataset j of the order; n tasks. Definitions: METHODS 1.12, and for the steps of
class-incremental learning `class_incremental_metrics`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gift_shared.errors import ShapeError
from gift_shared.manifests import CLASS_INCREMENTAL, MTIL

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Percent, and percentage points for `forgetting`. None: there is one task alone, or no transfer in class-incremental learning."""

    transfer: float | None
    avg: float
    last: float
    forgetting: float | None


def metrics_of(accuracies: Mapping[str, Any], matrix: Matrix) -> Metrics:
    """All four of a matrix of this accuracy_matrix.json, by the definitions of its protocol."""
    if accuracies.get("protocol", MTIL) == CLASS_INCREMENTAL:
        return class_incremental_metrics(matrix, accuracies["test_images"])
    return continual_metrics(matrix)


def class_incremental_metrics(matrix: Matrix, test_images: Sequence[int]) -> Metrics:
    """Of the steps that one dataset is cut into, over all test images of the classes seen so far. n_j: test images of step j.

    last = S[n],   avg = 1/n sum_i S[i],   S as of `accuracies_so_far`
    What is not seen yet has no place in it, so there is no transfer. `forgetting` is that of MTIL, over steps: with the label space
    union-seen it holds the loss to classes that came later, too.
    Raises: ShapeError unless the matrix is square and has as many test sets.
    """
    _require_square(matrix)
    if len(test_images) != len(matrix):
        raise ShapeError(f"{len(matrix)} steps have {len(test_images)} numbers of test images.")
    so_far = accuracies_so_far(matrix, test_images)
    return Metrics(transfer=None, avg=_mean(so_far), last=so_far[-1], forgetting=forgetting(matrix))


def accuracies_so_far(matrix: Matrix, test_images: Sequence[int]) -> list[float]:
    """Accuracy after each step over all test images of the classes seen by then: S[i] = sum_{j<=i} n_j A[i, j] / sum_{j<=i} n_j."""
    return [_weighted_mean(row[:size], test_images[:size]) for size, row in enumerate(matrix, start=1)]


def continual_metrics(matrix: Matrix) -> Metrics:
    """All four. Raises ShapeError unless the matrix is square and not empty."""
    _require_square(matrix)
    return Metrics(transfer=transfer(matrix), avg=average(matrix), last=last(matrix), forgetting=forgetting(matrix))


def transfer(matrix: Matrix) -> float | None:
    """How much zero-shot ability survives: 1/(n-1) sum_{j=2..n} ( 1/(j-1) sum_{i<j} A[i, j] ), a mean of column means.

    Not a mean over all cells above the diagonal: each dataset counts once. The first dataset is left out.
    """
    columns = [[matrix[row][column] for row in range(column)] for column in range(1, len(matrix))]
    return _mean([_mean(column) for column in columns]) if columns else None


def average(matrix: Matrix) -> float:
    """Mean over all n x n cells: past, present and future alike."""
    return _mean([_mean(row) for row in matrix])


def last(matrix: Matrix) -> float:
    """Mean of the last row: what is left at the end."""
    return _mean(matrix[-1])


def forgetting(matrix: Matrix) -> float | None:
    """1/(n-1) sum_{j=1..n} ( A[n, j] - A[j, j] ): negative means forgetting. The last dataset contributes 0."""
    changes = [final - matrix[column][column] for column, final in enumerate(matrix[-1])]
    return sum(changes) / (len(matrix) - 1) if len(matrix) > 1 else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _require_square(matrix: Matrix) -> None:
    sizes = {len(row) for row in matrix}
    if sizes != {len(matrix)}:
        raise ShapeError(f"An accuracy matrix is square, one row per task and one column per dataset; found rows of {sorted(sizes)}.")
