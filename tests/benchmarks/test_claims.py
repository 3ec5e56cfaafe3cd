"""The simulation of a folder that many workers fill: every shard is made once, and what is counted is what the rules say."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
claims = importlib.import_module("claims")


@pytest.mark.parametrize("rule", claims.RULES)
def test_every_shard_is_made_once_and_the_count_is_the_same_again(rule: str) -> None:
    found = claims.simulate(5, 40, rule)
    assert found == claims.simulate(5, 40, rule)
    made = claims.OPERATIONS_OF_WRITING + claims.OPERATIONS_OF_A_RELEASE
    assert found["asked"]["shards"]["operations"] == 20 * made  # half of them were there


def test_looking_into_shards_does_not_grow_with_the_workers() -> None:
    for occasion in ("start", "end"):
        each, share = (
            [claims.simulate(workers, 400, rule)["asked"][occasion]["operations"] for workers in (4, 16)] for rule in claims.RULES
        )
        assert each[1] == pytest.approx(4 * each[0], rel=0.01)
        assert share[1] < 1.1 * share[0]
