"""Trees come in few shapes; that they give the features of the tree as it is, test_towers.py tells."""

from gift_train.clip.tree_buckets import bucket


def test_buckets_of_rows():
    assert [bucket(number) for number in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
