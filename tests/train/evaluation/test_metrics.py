"""Transfer, Avg, Last, Forgetting: by hand, and on the matrices whose printed numbers are known."""

import json
from pathlib import Path

import pytest

from gift_shared.errors import ShapeError
from gift_train.evaluation.metrics import continual_metrics

PUBLISHED = json.loads((Path(__file__).parents[2] / "golden/mtil_matrices.json").read_text())
ROWS = [(order, method) for order in ("I", "II") for method in PUBLISHED[order]]


def test_three_tasks_worked_by_hand():
    metrics = continual_metrics([[90, 40, 20], [70, 80, 30], [60, 75, 95]])
    assert metrics.transfer == pytest.approx((40 + (20 + 30) / 2) / 2)  # column means 40 and 25; the mean of cells would be 30
    assert metrics.avg == pytest.approx(560 / 9)
    assert metrics.last == pytest.approx(230 / 3)
    assert metrics.forgetting == pytest.approx(((60 - 90) + (75 - 80) + 0) / 2)


@pytest.mark.parametrize(("order", "method"), ROWS)
def test_released_matrices_give_the_printed_numbers(order, method):
    row = PUBLISHED[order][method]
    metrics = continual_metrics(row["matrix"])
    # Printed to one decimal, from matrices rounded to two.
    assert [metrics.transfer, metrics.avg, metrics.last] == pytest.approx(row["printed"], abs=0.055)
    known = row["recomputed"]
    assert [metrics.transfer, metrics.avg, metrics.last, metrics.forgetting] == pytest.approx(
        [known["transfer"], known["avg"], known["last"], known["forget"]], abs=0.011
    )


def test_one_task_has_no_transfer_and_no_forgetting():
    metrics = continual_metrics([[70.0]])
    assert (metrics.transfer, metrics.avg, metrics.last, metrics.forgetting) == (None, 70.0, 70.0, None)


@pytest.mark.parametrize("matrix", [[], [[1.0, 2.0]], [[1.0], [2.0]]])
def test_matrix_that_is_not_square_is_refused(matrix):
    with pytest.raises(ShapeError, match="one row per task and one column per dataset"):
        continual_metrics(matrix)
