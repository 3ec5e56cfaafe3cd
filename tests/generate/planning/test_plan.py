"""Plans: what is drawn, in which order, under which names and seeds, and that nothing else decides it."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_generate.planning.plan import check_plan, make_plan, shard_slices
from gift_generate.planning.plan_request import PlanRequest, Seeding
from gift_shared import keys
from gift_shared.errors import ConfigError, PlanError
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import read_plan, write_plan
from gift_shared.schema import PLAN_SCHEMA, PlanKind

WORLD = [f"a photo of a thing {number}." for number in range(7)]
CATS = [f"a photo of a {name}, a type of cat." for name in ("tabby", "sphynx", "manx")]


def per_task(**changes) -> PlanRequest:
    return PlanRequest(**{"kind": PlanKind.PER_TASK, "order": "tiny", "images_per_task": 10, "images_per_shard": 4} | changes)


def pool(**changes) -> PlanRequest:
    return PlanRequest(**{"kind": PlanKind.POOL, "order": "tiny", "images_per_class": 2, "images_per_shard": 4} | changes)


def rows_of(request: PlanRequest, manifests: Path) -> list[dict]:
    return make_plan(request, Manifests((manifests,)))[0].to_pylist()


def captions_of(request: PlanRequest, manifests: Path, task: str) -> list[str]:
    return [row["caption"] for row in rows_of(request, manifests) if row["task"] == task]


def test_captions_are_the_published_draw_from_the_source_and_the_tasks_before(manifests: Path) -> None:
    stream = random.Random(42)
    first = [stream.choice(WORLD) for _ in range(10)]
    second = [stream.choice(WORLD + CATS) for _ in range(10)]
    assert captions_of(per_task(), manifests, "cats") == first
    assert captions_of(per_task(), manifests, "cars") == second


def test_a_short_list_is_the_beginning_of_a_long_one_when_as_many_captions_are_drawn(manifests: Path, add_order) -> None:
    add_order("published", ["cats", "cars"], "captions_drawn = 50")
    long = captions_of(per_task(order="published", images_per_task=50), manifests, "cars")
    short = captions_of(per_task(order="published", images_per_task=5), manifests, "cars")
    undrawn = captions_of(per_task(images_per_task=5), manifests, "cars")
    assert short == long[:5]
    assert undrawn != long[:5]
    assert captions_of(per_task(images_per_task=5, draws_per_task=50), manifests, "cars") == short


def test_every_row_knows_the_class_its_caption_comes_from(manifests: Path) -> None:
    for row in rows_of(per_task(images_per_task=40), manifests):
        manifest = Manifests((manifests,)).task(row["source"])
        assert manifest.class_names[row["class_index"]] == row["class_name"]
        assert manifest.first_template_captions[row["class_index"]] == row["caption"]


def test_the_task_itself_and_later_ones_are_never_drawn(manifests: Path) -> None:
    sources = {(row["task"], row["source"]) for row in rows_of(per_task(images_per_task=200), manifests)}
    assert sources == {("cats", "world"), ("cars", "world"), ("cars", "cats")}


def test_pretraining_only_draws_from_the_source_for_every_task(manifests: Path) -> None:
    assert {row["source"] for row in rows_of(per_task(is_pretraining_only=True, images_per_task=200), manifests)} == {"world"}


def test_published_seeds_follow_position_and_index(manifests: Path) -> None:
    rows = rows_of(per_task(seeding=Seeding.PUBLISHED), manifests)
    assert [row["sample_seed"] for row in rows if row["task"] == "cats"] == [419_900_000 + index for index in range(10)]
    assert [row["sample_seed"] for row in rows if row["task"] == "cars"] == [420_000_000 + index for index in range(10)]


def test_hashed_seeds_follow_the_key_and_differ(manifests: Path) -> None:
    rows = rows_of(per_task(), manifests)
    assert all(row["sample_seed"] == keys.hashed_seed(42, row["sample_key"]) for row in rows)
    assert len({row["sample_seed"] for row in rows}) == len(rows)


def test_shards_are_cut_by_index_and_belong_to_one_task(manifests: Path) -> None:
    table, _ = make_plan(per_task(), Manifests((manifests,)))
    expected = [("cats-00000", 0, 4), ("cats-00001", 4, 4), ("cats-00002", 8, 2), ("cars-00000", 10, 4), ("cars-00001", 14, 4)]
    assert shard_slices(table) == [*expected, ("cars-00002", 18, 2)]


def test_a_pool_has_every_class_name_equally_often(manifests: Path) -> None:
    rows = rows_of(pool(), manifests)
    counts = {(row["source"], row["class_name"]) for row in rows}
    assert len(rows) == 2 * len(counts) == 2 * (7 + 3 + 2)
    assert rows[0]["sample_key"] == "world-0000-00000"
    assert {row["task"] for row in rows} == {"pool"}
    assert {row["shard"].rpartition("-")[0] == row["source"] for row in rows} == {True}
    assert [row["index"] for row in rows] == list(range(len(rows)))


def test_a_pool_of_given_datasets_needs_no_order(manifests: Path) -> None:
    assert {row["source"] for row in rows_of(pool(order=None, datasets=("cars", "cats")), manifests)} == {"cars", "cats"}


SPLIT = 'steps = 3\nclass_order = [2, 0, 1]\ntemplates = ["a bad photo of a {}."]'  # of cats: tabby, sphynx, manx


def test_the_steps_of_a_dataset_draw_from_the_source_and_the_steps_before(manifests: Path, add_order) -> None:
    add_order("cut", ["cats"], SPLIT)
    stream = random.Random(42)
    learned = [f"a bad photo of a {name}." for name in ("manx", "tabby")]
    expected = [[stream.choice(WORLD + learned[:step]) for _ in range(10)] for step in range(3)]
    assert [captions_of(per_task(order="cut"), manifests, f"cats-{step:02d}") for step in (1, 2, 3)] == expected
    rows = [row for row in rows_of(per_task(order="cut", images_per_task=40), manifests) if row["source"] != "world"]
    assert {(row["task"], row["source"], row["class_index"], row["class_name"]) for row in rows} == {
        ("cats-02", "cats", 2, "manx"), ("cats-03", "cats", 2, "manx"), ("cats-03", "cats", 0, "tabby"),
    }  # fmt: skip


def test_one_pool_serves_any_number_of_steps(manifests: Path, add_order) -> None:
    add_order("whole", ["cats"], 'templates = ["a bad photo of a {}."]')
    add_order("cut", ["cats"], SPLIT)
    assert rows_of(pool(order="cut"), manifests) == rows_of(pool(order="whole"), manifests)
    assert {row["source"] for row in rows_of(pool(order="cut"), manifests)} == {"world", "cats"}


def test_a_caption_file_takes_its_share_of_a_pool_without_repeats(manifests: Path, tmp_path: Path, command) -> None:
    web = tmp_path / "web.txt"
    web.write_text("".join(f"line {number}\n" for number in range(30)))
    out = tmp_path / "pool.parquet"
    result = command(
        "plan", "--out", out, "--kind", "pool", "--dataset", "cats", "--images-per-class", 4, "--caption-file", f"{web}=2",
        "--manifests", manifests,
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = read_plan(out)[0].to_pylist()
    lines = [row["caption"] for row in rows if row["source"] == "file:web"]
    assert (len(rows), len(lines), len(set(lines))) == (36, 24, 24)
    assert {row["class_name"] for row in rows if row["source"] == "file:web"} == {None}


def test_a_plan_can_hold_captions_of_a_file_alone(manifests: Path, tmp_path: Path, command) -> None:
    web = tmp_path / "web.txt"
    web.write_text("one\ntwo\n")
    out = tmp_path / "plan.parquet"
    result = command(
        "plan", "--out", out, "--order", "tiny", "--images-per-task", 5, "--caption-file", web, "--class-name-weight", 0,
        "--manifests", manifests,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert set(read_plan(out)[0]["caption"].to_pylist()) == {"one", "two"}


def test_the_same_arguments_give_the_same_bytes_wherever_the_caption_file_lies(manifests: Path, tmp_path: Path, command) -> None:
    plans = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "web.txt").write_text("one\ntwo\nthree\n")
        path = tmp_path / folder / "plan.parquet"
        assert command(
            "plan", "--out", path, "--order", "tiny", "--images-per-task", 50, "--caption-file", tmp_path / folder / "web.txt",
            "--manifests", manifests,
        ).code == 0  # fmt: skip
        plans.append(path.read_bytes())
    assert plans[0] == plans[1]


def test_the_metadata_records_the_arguments(plan: Path) -> None:
    _, metadata = read_plan(plan)
    arguments = json.loads(metadata["arguments"])
    assert (metadata["kind"], metadata["order"]) == ("per-task", "tiny")
    assert (arguments["images_per_task"], arguments["seed"], arguments["seeding"]) == (10, 42, "hashed")


def test_the_estimate_tells_images_disk_and_time(command, manifests: Path, tmp_path: Path) -> None:
    result = command(
        "plan", "--out", tmp_path / "p.parquet", "--order", "tiny", "--images-per-task", 3600, "--images-per-second", 0.5,
        "--manifests", manifests,
    )  # fmt: skip
    assert "images  7,200" in result.out
    assert "disk    385.2 MB  (50.0 kB an image, assumed" in result.out
    assert "time    4.0 hours  (0.50 images/s" in result.out


def test_the_estimate_takes_rate_and_size_from_an_earlier_render(command, manifests: Path, rendered: Path, tmp_path: Path) -> None:
    result = command(
        "plan", "--out", tmp_path / "p.parquet", "--order", "tiny", "--images-per-task", 100, "--measured", rendered,
        "--manifests", manifests,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "kB an image, measured)" in result.out
    assert "images/s" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--order", "tinny", "--images-per-task", 5], "Unknown order 'tinny'. Did you mean 'tiny'?"),
        (["--kind", "pol", "--images-per-task", 5], "--kind: Unknown kind 'pol'. Did you mean 'pool'?"),
        (["--order", "tiny"], "A per-task plan needs --images-per-task and not --images-per-class"),
        (["--order", "tiny", "--images-per-task", 0], "--images-per-task must be at least 1, found 0"),
        (["--kind", "pool", "--dataset", "catts", "--images-per-class", 1], "Unknown dataset 'catts'. Did you mean 'cats'?"),
        (["--kind", "pool", "--order", "tiny", "--images-per-class", 1, "--seeding", "published"], "a pool has no task positions"),
        (["--order", "tiny", "--images-per-task", 5, "--draws-per-task", 4], "--draws-per-task 4 is less than --images-per-task 5"),
        (["--order", "tiny", "--images-per-task", 5, "--caption-file", "web.csv"], "Caption file 'web.csv' not found"),
        (["--order", "tiny", "--images-per-task", 100_001, "--seeding", "published"], "At most 100000 images a task"),
        (["--order", "tiny", "--images-per-task", 5, "--images-per-second", 0], "--images-per-second must be above 0"),
        (["--order", "tiny", "--images-per-task", 5, "--images-per-second", "inf"], "--images-per-second must be above 0"),
        (["--order", "tiny", "--images-per-task", 5, "--guidance-scale", "nan"], "--guidance-scale must be at least 0, found nan"),
        (["--order", "tiny", "--images-per-task", 5, "--steps", 0], "--steps must be at least 1, found 0"),
        (["--order", "tiny", "--images-per-task", 5, "--images-per-shard", 0], "--images-per-shard must be at least 1"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(command, manifests: Path, tmp_path: Path, arguments: list, message: str) -> None:
    out = tmp_path / "p.parquet"
    result = command("plan", "--out", out, "--manifests", manifests, *arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not out.exists()


def test_a_folder_is_no_name_for_a_plan(command, manifests: Path, tmp_path: Path) -> None:
    result = command("plan", "--out", tmp_path, "--manifests", manifests, "--order", "tiny", "--images-per-task", 5)
    assert result.code == 2
    assert "is a folder; expected the name of the file to write" in result.err


def test_a_template_without_a_place_for_the_name_is_refused(command, manifests: Path, tmp_path: Path) -> None:
    path = manifests / "tasks" / "cats.toml"
    path.write_text(path.read_text().replace("{}", "cat"))
    result = command("plan", "--out", tmp_path / "p.parquet", "--manifests", manifests, "--order", "tiny", "--images-per-task", 5)
    assert result.code == 2
    assert "must hold '{}' exactly once" in result.err


def test_two_caption_files_of_one_name_are_refused(manifests: Path, tmp_path: Path, command) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "web.txt").write_text("one\n")
    result = command(
        "plan", "--out", tmp_path / "p.parquet", "--order", "tiny", "--images-per-task", 5, "--manifests", manifests,
        "--caption-file", tmp_path / "a" / "web.txt", "--caption-file", tmp_path / "b" / "web.txt",
    )  # fmt: skip
    assert result.code == 2
    assert "Two caption files have one name" in result.err


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("shard", "../../etc/x", "shard '../../etc/x' must match"),
        ("sample_key", "a.b", "sample_key 'a.b' must match"),
        ("sample_key", "cats-000001", "a sample key stands twice"),
        ("shard", "cars-00001", "the rows of a shard must stand together"),
        ("sample_key", "a" * 91, "does not fit a tar"),
        ("sample_key", "zebra", "the sample keys of a shard must ascend"),
        ("denoising_steps", 0, "denoising steps must be at least 1"),
    ],
)
def test_a_plan_from_elsewhere_is_checked(manifests: Path, column: str, value: object, message: str) -> None:
    rows = rows_of(per_task(), manifests)
    rows[0][column] = value
    with pytest.raises(PlanError, match=message):
        check_plan(pa.Table.from_pylist(rows, schema=PLAN_SCHEMA), "p.parquet")


def test_a_plan_of_another_schema_version_is_refused_before_the_model_is_loaded(command, plan: Path, tmp_path: Path) -> None:
    table = pq.read_table(plan)
    pq.write_table(table.replace_schema_metadata({b"gift_schema_version": b"0"}), plan)
    result = command("render", "--plan", plan, "--out", tmp_path / "out", "--model", "no-such-folder")
    assert result.code == 2
    assert "has schema version 0, this program reads versions 1 and 2. Make the plan again." in result.err
    assert not (tmp_path / "out").exists()


def test_a_written_plan_is_read_back_identical(manifests: Path, tmp_path: Path) -> None:
    table, metadata = make_plan(per_task(), Manifests((manifests,)))
    write_plan(tmp_path / "p.parquet", table, metadata)
    again, read = read_plan(tmp_path / "p.parquet")
    assert again.equals(table)
    assert read == metadata


def test_an_order_or_datasets_must_be_given(manifests: Path) -> None:
    with pytest.raises(ConfigError, match="give one of the two"):
        make_plan(pool(datasets=("cats",)), Manifests((manifests,)))
