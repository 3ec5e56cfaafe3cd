"""Keys, shard names and seeds: safe everywhere, and a matter of place in the plan alone."""

import pytest

from gift_shared import keys


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Stanford Cars", "stanford_cars"),
        ("bow window/outdoor", "bow_window_outdoor"),
        ("../../etc", "etc"),
        ("0 - zero", "0_zero"),
        ("a.b", "a_b"),
    ],
)
def test_a_slug_is_safe_in_keys_and_paths(name: str, slug: str) -> None:
    assert keys.slug(name) == slug
    assert keys.KEY_PATTERN.fullmatch(slug)


def test_keys_of_a_task_sort_by_index() -> None:
    made = [keys.task_sample_key("mini_shapes", index) for index in (0, 9, 10, 99_999, 999_999)]
    assert made == sorted(made)
    assert made[1] == "mini_shapes-000009"


def test_keys_of_a_pool_sort_by_class_and_copy() -> None:
    made = [keys.pool_sample_key("imagenet", label, copy) for label in (2, 10) for copy in (0, 7, 11)]
    assert made == sorted(made)
    assert made[0] == "imagenet-0002-00000"


def test_the_published_seeds_are_those_of_the_authors_images() -> None:
    assert keys.published_seed(42, 1, 0) == 419_900_000
    assert keys.published_seed(42, 2, 17) == 420_000_017
    assert keys.published_seed(42, 11, 999) == 420_900_999


def test_a_hashed_seed_follows_from_run_seed_and_key_and_fits_a_generator() -> None:
    seed = keys.hashed_seed(42, "aircraft-000017")
    assert seed == 4_193_932_474_109_685_563, "a change here changes every image of every plan"
    assert seed != keys.hashed_seed(43, "aircraft-000017")
    assert seed != keys.hashed_seed(42, "aircraft-000018")
    assert all(0 <= keys.hashed_seed(0, f"x-{number}") < 2**62 for number in range(1000))


def test_retries_leave_the_planned_seed_and_its_neighbours_alone() -> None:
    planned = range(1000)
    retried = {keys.retry_seed(seed, attempt) for seed in planned for attempt in (1, 2)}
    assert keys.retry_seed(5, 0) == 5
    assert len(retried) == 2000
    assert retried.isdisjoint(planned)
