"""Where many images lie: the places given, in any order, whatever their names."""

import os
from pathlib import Path

from gift_train.data.places import Place, Places

GIVEN = [
    Place(Path("/a/first.jpg"), 0, -1),
    Place(Path(os.fsdecode(b"/a/\xff name.jpg")), 0, -1),
    Place(Path("/a/one.tar"), 512, 10_000_000_000),
    Place(Path("/a/one.tar"), 10_000_001_024, 7),
    Place(Path("/a/first.jpg"), 0, -1),
]


def test_places_come_back_as_they_were_given():
    places = Places.of(GIVEN)
    assert list(places) == GIVEN
    assert len(places) == len(GIVEN)
    assert places[-1] == GIVEN[-1]
    assert list(places[1:3]) == GIVEN[1:3]


def test_some_of_them_in_another_order():
    assert list(Places.of(GIVEN).take([3, 0])) == [GIVEN[3], GIVEN[0]]
    assert list(Places.of(GIVEN).take([])) == []


def test_none_at_all():
    assert len(Places.of([])) == 0
    assert not Places.of([])
