"""Transfer, Avg, Last, Forgetting: by hand, and on the matrices whose printed numbers are known."""

import json
from pathlib import Path

import pytest

from gift_shared.errors import ShapeError
from gift_train.evaluation.metrics import class_incremental_metrics, continual_metrics, metrics_of

PUBLISHED = json.loads((Path(__file__).parents[2] / "golden/mtil_matrices.json").read_text())
ROWS = [(order, method) for order in ("I", "II") for method in PUBLISHED[order]]


STEPS = json.loads((Path(__file__).parents[2] / "golden/class_incremental.json").read_text())


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


@pytest.mark.parametrize("name", STEPS)
def test_published_class_incremental_runs_give_their_printed_numbers(name):
    run = STEPS[name]
    # What is not seen yet, whatever it is, takes no part.
    matrix = [row + [99.0] * (len(run["rows"]) - len(row)) for row in run["rows"]]
    metrics = metrics_of({"protocol": "class-incremental", "test_images": run["test_images"]}, matrix)
    assert metrics.transfer is None
    # Their files round to two decimals.
    assert (metrics.last, metrics.avg) == (pytest.approx(run["last"], abs=0.006), pytest.approx(run["avg"], abs=0.006))


def test_steps_weigh_by_their_test_images():
    metrics = class_incremental_metrics([[80.0, 5.0], [60.0, 20.0]], [300, 100])
    assert metrics.last == pytest.approx((3 * 60 + 20) / 4)
    assert metrics.avg == pytest.approx((80 + (3 * 60 + 20) / 4) / 2)
    assert metrics.forgetting == -20.0


def test_other_runs_keep_the_definitions_of_mtil():
    matrix = [[80.0, 5.0], [60.0, 20.0]]
    assert metrics_of({"test_images": [300, 100]}, matrix) == metrics_of({}, matrix) == continual_metrics(matrix)


def test_a_number_of_test_images_for_every_step():
    with pytest.raises(ShapeError, match="2 steps have 1"):
        class_incremental_metrics([[80.0, 5.0], [60.0, 20.0]], [300])
