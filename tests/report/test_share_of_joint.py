"""The share of the way from finetune to joint, and the tables of what stands beside an order."""

from pathlib import Path

import pytest

from gift_train.report.beside_table import Kept, beside_tables
from gift_train.report.grid import grid_text
from gift_train.report.runs import Run
from gift_train.report.share_of_joint import share_csv, share_grid, shares_of_joint


def run(recipe, seed, avg, last, order="mini", **accuracy):
    summary = {"recipe": recipe, "order": order, "seed": seed, "avg": avg, "last": last}
    return Run(Path(recipe), summary, {"datasets": ["one"], **accuracy}, {})


def test_a_share_is_over_the_seeds_that_all_three_have():
    runs = [run("finetune", 1, 0, 0), run("finetune", 2, 40, 30), run("finetune", 3, 50, 20)]
    runs += [run("joint", 2, 80, 80), run("joint", 3, 70, 80), run("joint", 4, 0, 0)]
    runs += [run("gift", 1, 99, 99), run("gift", 2, 50, 60), run("gift", 3, 55, 50), run("l2", 1, 50, 50)]
    (gift,) = shares_of_joint(runs)
    assert (gift.recipe, gift.seeds) == ("gift", (2, 3))
    assert gift.avg == pytest.approx((52.5 - 45) / (75 - 45))
    assert gift.last == pytest.approx((55 - 25) / (80 - 25))
    assert grid_text(share_grid([gift])).splitlines()[-1].split() == ["gift", "25", "%", "55", "%", "2"]
    assert share_csv([gift]).splitlines()[1].startswith("mini,gift,2 3,0.25,0.5454")


def test_a_method_may_fall_behind_finetune_and_joint_may_be_no_bound():
    behind = run("l2", 1, 35, 20)
    (share,) = shares_of_joint([run("finetune", 1, 40, 30), run("joint", 1, 60, 30), behind])
    assert (share.avg, share.last) == (pytest.approx(-0.25), None)


def test_orders_are_kept_apart():
    runs = [
        run("finetune", 1, 40, 30),
        run("joint", 1, 60, 50, order="other"),
        run("gift", 1, 50, 40),
        run("gift", 1, 50, 40, order="other"),
    ]
    assert shares_of_joint(runs) == []


def test_what_stands_beside_the_order_is_a_mean_over_seeds_with_its_change():
    also = {"datasets": ["birds"], "zero_shot": [60.0], "matrix": [[50.0]]}
    recalls = {direction: {"1": 10.0, "5": 20.0, "10": 30.0} for direction in ("image_to_text", "text_to_image")}
    retrieval = {"photos": {"zero_shot": recalls, "after": [recalls | {"text_to_image": {"1": 4.0, "5": 20.0, "10": 30.0}}]}}
    other = {"datasets": ["birds"], "zero_shot": [62.0], "matrix": [[46.0]]}
    runs = [run("gift", 1, 0, 0, also=also), run("gift", 2, 0, 0, also=other), run("l2", 1, 0, 0, retrieval=retrieval)]
    datasets, photos = beside_tables(runs)
    assert datasets.rows == [("gift", {"birds": Kept(61.0, 48.0)})]
    assert grid_text(photos.grid()).splitlines()[0].split()[:5] == ["retrieval,", "photos", "I→T", "R@1", "I→T"]
    assert "4.0 (-6.0)" in grid_text(photos.grid())
    assert beside_tables([run("gift", 1, 0, 0)]) == []
