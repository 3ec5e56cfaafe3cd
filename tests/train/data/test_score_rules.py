"""Which pictures the rules over scores keep, and what is told of it."""

import math
import warnings

import numpy as np
import pyarrow as pa
import pytest

from gift_shared.errors import ConfigError, DataError, ShardError
from gift_shared.manifests import OrderManifest
from gift_shared.parquet_files import write_index, write_rows
from gift_shared.schema import INDEX_SCHEMA, SCORES_SCHEMA
from gift_shared.scores import INDEX_SHA256, SCORER, file_sha256
from gift_train.data.score_rules import ScoreRules, share_kept
from gift_train.data.selection import ReplaySelection, ReplayShortage, count_replay, select_replay

ORDER = OrderManifest(name="o", display_name="O", pretraining_source="words", tasks=("red", "green"), recipes="mini")
NUM = 12  # pictures of a task, or of a pool's class


def index_rows(samples):
    """INDEX_SCHEMA rows from (task, index, source, class_index, caption, status)."""
    rows = []
    for task, index, source, class_index, caption, status in samples:
        key = f"{task}-{source.replace(chr(58), chr(95))}-{'x' if class_index is None else class_index}-{index:06d}"
        text = dict.fromkeys(INDEX_SCHEMA.names, "")
        number = {field.name: 1 for field in INDEX_SCHEMA if not pa.types.is_string(field.type)}
        row = {"task": task, "index": index, "sample_key": key, "source": source, "class_index": class_index, "status": status}
        rows.append(text | number | row | {"caption": caption, "shard": f"{task}-00000", "image_name": f"{key}.png"})
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def write(out, samples, similarities, ranks, name="mini"):
    """A folder with an index and scores."""
    rows = index_rows(samples)
    write_index(out / "index.parquet", rows, {})
    scores = pa.table([rows["sample_key"], pa.array(similarities, pa.float32()), pa.array(ranks, pa.int32())], schema=SCORES_SCHEMA)
    metadata = {INDEX_SHA256: file_sha256(out / "index.parquet"), SCORER: '{"clip": "mini", "weights": "0"}'}
    write_rows(out / f"scores/{name}.parquet", [scores], SCORES_SCHEMA, metadata)
    return out


def per_task(num_classes=3):
    """Two tasks of NUM pictures, classes in turn; the second picture of each task is black and so has no scores."""
    return [
        (task, index, "words", index % num_classes, f"a {index % num_classes}", "black" if index == 1 else "ok")
        for task in ("red", "green")
        for index in range(NUM)
    ]


def scored(samples, seed=0):
    rng = np.random.default_rng(seed)
    judged = [(float(rng.uniform(-1, 1)), int(rng.integers(1, 4))) if sample[-1] == "ok" else (None, None) for sample in samples]
    return [list(column) for column in zip(*judged, strict=True)]


def rule(num_images=NUM, **by_score):
    return ReplaySelection(num_images=num_images, captions="all", seed=0, by_score=ScoreRules(**by_score))


def chosen(out, selection):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReplayShortage)
        return {task: rows["sample_key"].to_pylist() for task, rows in select_replay(out, ORDER, selection).items()}


def keys_of(samples):
    return index_rows(samples)["sample_key"].to_pylist()


@pytest.mark.parametrize("share", [0.1, 0.34, 0.5, 1.0])
def test_the_share_kept_is_that_of_a_plain_loop(share):
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 9, 100).astype(np.int32)
    values = rng.integers(0, 6, 100).astype(np.float32)  # many are equal
    expected = []
    for group in range(9):
        members = [place for place in range(100) if groups[place] == group]
        members.sort(key=lambda place: -values[place])  # stable
        expected += members[: math.ceil(round(share * len(members), 9))]
    assert sorted(share_kept(groups, values, share).tolist()) == sorted(expected)
    assert share_kept(groups[:0], values[:0], share).tolist() == []


def test_a_tenth_of_thirty_is_three():
    kept = share_kept(np.zeros(30, np.int32), np.arange(30, dtype=np.float32), 0.1)
    assert sorted(kept.tolist()) == [27, 28, 29]


def test_max_rank_keeps_the_pictures_that_rank_so_high_in_the_plans_order(tmp_path):
    samples = per_task()
    similarities, ranks = scored(samples)
    out = write(tmp_path, samples, similarities, ranks)
    for most in (1, 2, 3):
        kept = [key for key, rank in zip(keys_of(samples), ranks, strict=True) if rank is not None and rank <= most]
        assert chosen(out, rule(max_rank=most)) == {task: [key for key in kept if key.startswith(task)] for task in ORDER.tasks}
    first = [key for key, rank in zip(keys_of(samples), ranks, strict=True) if rank is not None and rank <= 2 and key.startswith("red")][:3]
    assert chosen(out, rule(num_images=3, max_rank=2))["red"] == first


def test_top_share_is_of_the_usable_pictures_of_a_class_in_its_task(tmp_path):
    samples = per_task()
    similarities, ranks = scored(samples)
    out = write(tmp_path, samples, similarities, ranks)
    keys, found = keys_of(samples), chosen(out, rule(top_share=0.5))
    for task in ORDER.tasks:
        expected = set()
        for label in range(3):
            own = [place for place, row in enumerate(samples) if (row[0], row[3], row[5]) == (task, label, "ok")]
            expected |= {keys[place] for place in sorted(own, key=lambda place: -similarities[place])[: math.ceil(len(own) / 2)]}
        assert found[task] == [key for key in keys if key in expected]


def test_a_caption_of_a_file_is_a_class_of_its_own(tmp_path):
    samples = [("red", index, "file:web", None, f"caption {index // 4}", "ok") for index in range(8)]
    samples += [("green", 0, "words", 0, "x", "ok")]
    out = write(tmp_path, samples, [0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.6, 0.5], [1] * 9)
    keys = keys_of(samples)
    assert chosen(out, rule(top_share=0.25))["red"] == [keys[3], keys[4]]


def test_both_rules_keep_what_each_of_them_keeps_and_tell_how_many(tmp_path, caplog):
    samples = per_task()
    similarities, ranks = scored(samples)
    out = write(tmp_path, samples, similarities, ranks)
    ranked, best = chosen(out, rule(max_rank=2)), chosen(out, rule(top_share=0.5))
    caplog.clear()
    both = chosen(out, rule(max_rank=2, top_share=0.5))
    assert both == {task: [key for key in ranked[task] if key in best[task]] for task in ORDER.tasks}
    told = "; ".join(
        f"{task}: {NUM - 1} usable, max_rank = 2 leaves {len(ranked[task])}, top_share = 0.5 leaves {len(both[task])}"
        for task in ORDER.tasks
    )
    assert caplog.messages == [f"Pictures that may be replayed, by scores of {out}. {told}."]


def test_what_is_missing_is_told_with_what_each_rule_left(tmp_path):
    samples = per_task()
    out = write(tmp_path, samples, *scored(samples))
    with pytest.warns(ReplayShortage, match=r"for task 'red' \(captions: all; 11 usable, top_share = 0\.1 leaves 3\), 12 are wanted: 9"):
        select_replay(out, ORDER, rule(top_share=0.1))
    with pytest.raises(DataError, match=r"max_rank = 1 leaves 0\), 12 are wanted: none is left"):
        select_replay(
            write(tmp_path / "bad", samples, *[scored(samples)[0], [None if s[-1] != "ok" else 2 for s in samples]]),
            ORDER,
            rule(max_rank=1),
        )


def test_a_pool_is_drawn_from_what_the_rules_leave(tmp_path, caplog):
    samples = [
        ("pool", copy, source, label, f"a {source} {label}", "ok")
        for source in ("words", "red")
        for label in range(4)
        for copy in range(NUM)
    ]
    similarities, ranks = scored(samples)
    out = write(tmp_path, samples, similarities, ranks)
    allowed = {key for key, rank in zip(keys_of(samples), ranks, strict=True) if rank == 1}
    found = chosen(out, rule(num_images=10, max_rank=1))
    assert {len(keys) for keys in found.values()} == {10}
    assert set(found["red"]) | set(found["green"]) <= allowed
    assert all("-words-" in key for key in found["red"])
    words = sum("-words-" in key for key in allowed)
    assert f"red: 48 usable, max_rank = 1 leaves {words}; green: 96 usable, max_rank = 1 leaves {len(allowed)}." in caplog.messages[0]
    assert count_replay(out, ORDER, rule(num_images=10, max_rank=1)) == {"red": 10, "green": 10}
    every = chosen(out, rule(num_images=1000, top_share=0.25))
    assert len(every["red"]) == 4 * NUM // 4


@pytest.mark.parametrize(
    ("by_score", "message"),
    [
        ({"max_rank": 0}, r"\[replay\] max_rank must be at least 1, the best, found 0"),
        ({"top_share": 0.0}, r"\[replay\] top_share is a fraction from above 0 to 1, found 0.0"),
        ({"top_share": 1.5}, r"found 1.5"),
        ({"scores": "mini"}, r"scores goes with max_rank or top_share"),
        ({"scores": "../mini", "max_rank": 1}, r"\[replay\] scores '\.\./mini' must match"),
    ],
)
def test_rules_that_cannot_be_are_refused(by_score, message):
    with pytest.raises(ConfigError, match=message):
        ScoreRules(**by_score)


def test_a_folder_without_scores_names_the_command(tmp_path):
    out = write(tmp_path, per_task(), *scored(per_task()))
    (out / "scores/mini.parquet").rename(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match=rf"{out} has no scores: run `gift-generate score --out {out} --clip MODEL` first\."):
        select_replay(out, ORDER, rule(max_rank=1))
    assert len(chosen(out, rule())["red"]) == NUM - 1  # what does not ask for them does not need them


def test_of_several_scores_one_is_named(tmp_path):
    samples = per_task()
    similarities, ranks = scored(samples)
    out = write(tmp_path, samples, similarities, ranks)
    write(tmp_path, samples, similarities, [None if rank is None else 1 for rank in ranks], name="kind")
    with pytest.raises(ConfigError, match=r'has several scores \(kind, mini\): name one, in a recipe as \[replay\] scores = "kind"'):
        select_replay(out, ORDER, rule(max_rank=1))
    with pytest.raises(ConfigError, match=r"Unknown scores 'mimi'. Did you mean 'mini'\?"):
        select_replay(out, ORDER, rule(max_rank=1, scores="mimi"))
    assert len(chosen(out, rule(max_rank=1, scores="kind"))["red"]) == NUM - 1


def test_scores_of_other_pictures_and_impossible_ones_are_refused(tmp_path):
    samples = per_task()
    similarities, ranks = scored(samples)
    out = write(tmp_path / "other", samples, similarities, ranks)
    write_index(out / "index.parquet", index_rows(samples), {"made": "again"})
    with pytest.raises(ShardError, match=r"mini.parquet is of another index.parquet: pictures were made again since"):
        select_replay(out, ORDER, rule(max_rank=1))
    with pytest.raises(ShardError, match=r"a rank is below 1"):
        select_replay(write(tmp_path / "rank", samples, similarities, [0, *ranks[1:]]), ORDER, rule(max_rank=1))
    with pytest.raises(ShardError, match=r"a similarity is no cosine"):
        select_replay(write(tmp_path / "nan", samples, [float("nan"), *similarities[1:]], ranks), ORDER, rule(top_share=1.0))
