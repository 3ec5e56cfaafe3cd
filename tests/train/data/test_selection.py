"""Which rows a task replays, from per-task plans and from pools."""

import warnings
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_shared import parquet_files
from gift_shared.class_split import ClassSplit
from gift_shared.errors import ConfigError, DataError, ShardError
from gift_shared.manifests import OrderManifest
from gift_shared.parquet_files import open_output_index, write_index
from gift_shared.schema import INDEX_SCHEMA
from gift_train.data import candidates
from gift_train.data.selection import ReplaySelection, ReplayShortage, count_replay, select_places, select_replay

ORDER = OrderManifest(name="o", display_name="O", pretraining_source="words", tasks=("red", "green", "blue"), recipes="mini")


def index_rows(samples):
    """INDEX_SCHEMA rows from (task, index, source, class_index, status)."""
    rows = []
    for task, index, source, class_index, status in samples:
        key = f"{task}-{source}-{class_index}-{index:06d}"
        text = dict.fromkeys(INDEX_SCHEMA.names, "")
        number = {field.name: 1 for field in INDEX_SCHEMA if not pa.types.is_string(field.type)}
        row = {"task": task, "index": index, "sample_key": key, "source": source, "class_index": class_index, "status": status}
        rows.append(text | number | row | {"shard": f"{task}-00000", "image_name": f"{key}.png"})
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def write(out, samples):
    write_index(out / "index.parquet", index_rows(samples), {})
    return out


def select(out, order, task_index, rule):
    """The rows of one task."""
    with open_output_index(out) as index:
        (places,) = select_places(index, str(out), order, rule, [order.tasks[task_index]]).values()
        return index.take(places)


def rule(num_images, captions="all", seed=0):
    return ReplaySelection(num_images=num_images, captions=captions, seed=seed)


def pool(num_classes=20, copies=5, status="ok"):
    return [
        ("pool", copy, source, class_index, status)
        for source in ("words", "red", "green", "blue")
        for class_index in range(num_classes)
        for copy in range(copies)
    ]


def test_per_task_plan_gives_the_first_usable_rows_by_index(tmp_path):
    samples = [("green", index, "words", 0, "black" if index == 1 else "ok") for index in (3, 1, 0, 2)] + [("red", 0, "words", 0, "ok")]
    chosen = select(write(tmp_path, samples), ORDER, 1, rule(2))
    assert chosen.schema.equals(INDEX_SCHEMA)
    assert list(zip(chosen["task"].to_pylist(), chosen["index"].to_pylist(), strict=True)) == [("green", 0), ("green", 2)]


def test_pretraining_only_leaves_out_captions_of_earlier_tasks(tmp_path):
    samples = [("green", index, "red" if index % 2 else "words", 0, "ok") for index in range(6)]
    chosen = select(write(tmp_path, samples), ORDER, 1, rule(3, captions="pretraining-only"))
    assert chosen["index"].to_pylist() == [0, 2, 4]
    chosen = select(write(tmp_path, pool()), ORDER, 2, rule(30, captions="pretraining-only"))
    assert set(chosen["source"].to_pylist()) == {"words"}


def test_shortage_is_told_and_the_rest_is_used(tmp_path):
    out = write(tmp_path, [("red", index, "words", 0, "ok") for index in range(3)])
    with pytest.warns(ReplayShortage, match=r"holds 3 usable pictures for task 'red'.*5 are wanted: 2 are missing"):
        assert len(select(out, ORDER, 0, rule(5))) == 3


def test_no_image_left_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"0 usable pictures for task 'red'.*none is left"):
        select(write(tmp_path / "task", [("red", 0, "words", 0, "black")]), ORDER, 0, rule(5))
    with pytest.raises(DataError, match=r"0 usable pictures for task 'red'.*none is left"):
        select(write(tmp_path / "pool", pool(status="flagged")), ORDER, 0, rule(5))


def test_plan_for_other_tasks_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no row for 'blue', only for green, red"):
        select(write(tmp_path, [("red", 0, "words", 0, "ok"), ("green", 0, "words", 0, "ok")]), ORDER, 2, rule(1))


def test_unfinished_output_folder_is_an_error(tmp_path):
    with pytest.raises(ShardError, match=r"no output folder, or not finished"):
        select(tmp_path, ORDER, 0, rule(1))


def test_unknown_caption_rule_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean 'pretraining-only'"):
        rule(1, captions="pretraining_only")


def test_pool_draw_uses_pretraining_and_earlier_tasks_only_and_no_image_twice(tmp_path):
    chosen = select(write(tmp_path, pool()), ORDER, 1, rule(150))
    assert set(chosen["source"].to_pylist()) == {"words", "red"}
    assert len(set(chosen["sample_key"].to_pylist())) == 150


def test_a_step_draws_from_a_pool_the_classes_of_the_steps_before(tmp_path):
    split = ClassSplit(dataset="red", steps=((3, 1), (0, 2), (4, 5)))
    steps = OrderManifest(name="s", display_name="S", pretraining_source="words", tasks=split.step_names(), recipes="mini", split=split)
    out = write(tmp_path, pool())

    def drawn(task_index):
        with pytest.warns(ReplayShortage):  # all that there are
            rows = select(out, steps, task_index, rule(1000))
        return {(row["source"], row["class_index"]) for row in rows.select(["source", "class_index"]).to_pylist()}

    words = {("words", label) for label in range(20)}
    assert drawn(0) == words
    assert drawn(1) == words | {("red", 1), ("red", 3)}
    assert drawn(2) == words | {("red", label) for label in range(4)}


def test_a_pool_without_the_classes_of_the_steps_before_is_an_error(tmp_path):
    split = ClassSplit(dataset="red", steps=((3,), (0,)))
    steps = OrderManifest(name="s", display_name="S", pretraining_source="words", tasks=split.step_names(), recipes="mini", split=split)
    samples = [("pool", copy, source, 0, "ok") for source in ("words", "red") for copy in range(5)]
    with pytest.raises(DataError, match=r"a pool without pictures of red, which task 'red-02' replays"):
        select(write(tmp_path, samples), steps, 1, rule(3))


def test_pool_draw_repeats_and_differs_by_seed_and_task(tmp_path):
    out = write(tmp_path, pool())

    def keys(task_index, seed):
        return select(out, ORDER, task_index, rule(40, captions="pretraining-only", seed=seed))["sample_key"].to_pylist()

    assert keys(1, 0) == keys(1, 0)
    assert keys(1, 0) != keys(1, 1)
    assert keys(1, 0) != keys(2, 0)


def test_pool_is_used_up_before_anything_is_missing(tmp_path):
    out = write(tmp_path, pool(num_classes=3, copies=4))
    chosen = select(out, ORDER, 0, rule(12))
    assert len(set(chosen["sample_key"].to_pylist())) == 12
    with pytest.warns(ReplayShortage, match=r"1 are missing"):
        assert len(select(out, ORDER, 0, rule(13))) == 12


def test_pool_draws_are_uniform_over_class_names_whatever_their_number_of_images(tmp_path):
    samples = [("pool", copy, "words", name, "ok") for name in range(4) for copy in range(1000 if name else 4000)]
    counts = Counter(select(write(tmp_path, samples), ORDER, 0, rule(2000))["class_index"].to_pylist())
    assert max(abs(count - 500) for count in counts.values()) < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_pool_without_an_earlier_task_is_an_error(tmp_path):
    samples = [sample for sample in pool() if sample[2] != "red"]
    with pytest.raises(DataError, match=r"a pool without pictures of red, which task 'blue' replays"):
        select(write(tmp_path, samples), ORDER, 2, rule(1))


def test_every_task_of_an_order_gets_what_it_would_alone(tmp_path):
    out = write(tmp_path, pool())
    together = select_replay(out, ORDER, rule(30))
    assert list(together) == list(ORDER.tasks)
    assert all(rows.equals(select(out, ORDER, index, rule(30))) for index, rows in enumerate(together.values()))


def test_a_selection_stays_what_it_was(tmp_path):
    """Recorded when the whole index was in memory and its order sorted whole: a run that goes on selects as it did."""
    blue = select(write(tmp_path, pool(num_classes=7, copies=9)), ORDER, 2, rule(12, seed=3))
    assert list(zip(*(blue[name].to_pylist() for name in ("source", "class_index", "index")), strict=True)) == [
        ("words", 5, 3), ("red", 0, 1), ("words", 1, 5), ("red", 1, 5), ("words", 3, 3), ("words", 1, 1),
        ("words", 5, 2), ("green", 4, 8), ("green", 4, 4), ("red", 2, 7), ("red", 4, 5), ("red", 5, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("num_images", [1, 30, 299, 400])
def test_how_many_are_sorted_first_changes_nothing(tmp_path, monkeypatch, num_images):
    out = write(tmp_path, pool())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReplayShortage)
        whole = select(out, ORDER, 2, rule(num_images))
        monkeypatch.setattr(candidates, "FIRST_LOOK", 1)
        assert select(out, ORDER, 2, rule(num_images)).equals(whole)


@pytest.mark.parametrize("samples", [pool(), [("blue", index, "words", 0, "ok") for index in range(50)]])
def test_only_rows_that_are_chosen_are_read_whole(tmp_path, monkeypatch, samples):
    monkeypatch.setattr(parquet_files, "ROWS_AT_ONCE", 10)
    whole = []
    read = pq.ParquetFile.read_row_group

    def noted(file, group, columns):
        whole.extend([group] if len(columns) > 5 else [])
        return read(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    chosen = select(write(tmp_path, samples), ORDER, 2, rule(3))
    assert len(chosen) == 3
    assert 0 < len(whole) <= 3 < len(samples) / 10


def test_a_per_task_plan_in_many_groups_gives_the_first_by_index(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "ROWS_AT_ONCE", 4)
    samples = [("blue", (index * 7) % 50, "words", 0, "ok" if index % 3 else "black") for index in range(50)]
    chosen = select(write(tmp_path, samples), ORDER, 2, rule(9))
    assert chosen["index"].to_pylist() == sorted(index for _, index, *_, status in samples if status == "ok")[:9]


def test_counting_is_selecting(tmp_path):
    out = write(tmp_path, pool())
    assert count_replay(out, ORDER, rule(30)) == {task: len(rows) for task, rows in select_replay(out, ORDER, rule(30)).items()}
