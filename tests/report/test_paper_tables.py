"""The paper's tables: published numbers, which runs count, and ours beside the paper's. Run folders are written by hand."""

import csv
import hashlib
import io
import json
import re
import shlex
import tomllib
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from gift_shared.errors import GiftError
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import write_index
from gift_shared.schema import INDEX_SCHEMA
from gift_train.cli import app
from gift_train.evaluation.metrics import continual_metrics
from gift_train.recipes.recipe import load_recipe
from gift_train.records.identity import manifests_digest
from gift_train.report.paper_tables.command import parse_seeds, parse_shards
from gift_train.report.paper_tables.definition import load_table, table_names
from gift_train.report.paper_tables.running import spoken

MODELS = {"mtil": ("ViT-B-16", "openai"), "cil": ("ViT-B-16", "openai"), "mini": ("mini", None)}
PUBLISHED = Path(str(resources.files("gift_manifests"))) / "published"


def make_run(runs, recipe, seed=1, order="mini", numbers=(50.0, 60.0, 70.0), *, label="", finished=True, record=None):
    """A run folder as `gift-train run` leaves it, as far as tables read it. `record` goes over run.json."""
    manifest = Manifests().order(order)
    resolved = load_recipe(recipe, manifest.recipes)
    folder = runs / order / f"{recipe}-seed{seed}{label}"
    folder.mkdir(parents=True)
    model, pretrained = MODELS[manifest.recipes]
    written = {
        "recipe_name": recipe, "recipe": resolved.as_table(), "overrides": [], "order": order, "datasets": list(manifest.tasks),
        "seed": seed, "model": model, "pretrained": pretrained, "shards": None, "reference_images": None, "commit": "abc123",
    }  # fmt: skip
    if resolved.steps is None:
        written["task_steps"] = [16] * len(manifest.tasks)
    (folder / "run.json").write_text(json.dumps(written | (record or {})))
    size = len(manifest.tasks)
    matrix = [[50.0] * size] * (size if finished else 2)
    accuracy = {"order": order, "datasets": list(manifest.tasks), "zero_shot": [50.0] * size, "matrix": matrix}
    (folder / "accuracy_matrix.json").write_text(json.dumps(accuracy))
    if finished:
        transfer, avg, last = numbers
        summary = {
            "method": resolved.method,
            "recipe": recipe,
            "order": order,
            "seed": seed,
            "transfer": transfer,
            "avg": avg,
            "last": last,
        }
        summary |= {"forgetting": -5.0, "seconds": {"train": 100.0, "evaluate": 20.0}}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def table(*arguments):
    """Through the command line: what it prints; raises the GiftError that it would tell."""
    result = CliRunner().invoke(app, ["table", *map(str, arguments)], catch_exceptions=True)
    if isinstance(result.exception, GiftError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def line_of(text, label):
    return next(line for line in text.splitlines() if line.startswith(label))


def make_index(folder, tasks, num_images):
    """An output folder's index without its tars: all that selection reads."""
    rows = [
        dict.fromkeys(INDEX_SCHEMA.names) | {
            "task": task, "index": index, "sample_key": f"{task}-{index}", "caption": "a fox.", "source": "mini_base",
            "sample_seed": index, "guidance_scale": 7.5, "denoising_steps": 50, "shard": "s", "status": "ok", "message": "",
            "attempts": 1, "used_seed": index, "width": 8, "height": 8, "image_name": f"{task}-{index}.png", "byte_offset": 512,
            "byte_size": 70, "sha256": 64 * "0",
        }
        for task in tasks for index in range(num_images)
    ]  # fmt: skip
    write_index(folder / "index.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA), {})
    return folder


def test_the_nine_tables_of_the_paper_are_there_and_one_for_each_protocol():
    of_the_paper = ["1", "2", "alignment", "captions", "components", "distillation", "images", "steps", "teacher"]
    assert table_names() == sorted([*of_the_paper, "class-incremental", "few-shot", "x-tail"])
    assert [row.recipe for row in load_table("1").rows] == [row.recipe for row in load_table("2").rows]
    assert len(load_table("1").rows) == 11
    for name in table_names():  # what a share of the way from finetune to joint is taken from
        assert {"finetune", "joint"} <= set(load_table(name).recipes), name


@pytest.mark.parametrize("order", ["mtil-1", "mtil-2"])
def test_released_matrices_recompute_to_the_printed_rows(order):
    released = json.loads((PUBLISHED / "stage_matrices.json").read_text())["orders"][order]
    rows = {row.recipe: row.published for row in load_table({"mtil-1": "1", "mtil-2": "2"}[order]).rows}
    for recipe, one in released.items():  # tolerance: the rounding of the printed row and of the released entries
        found = continual_metrics(one["matrix"])
        if recipe in rows:
            for metric in ("transfer", "avg", "last"):
                assert getattr(found, metric) == pytest.approx(getattr(rows[recipe], metric), abs=0.055), (recipe, metric)


@pytest.mark.parametrize(("order", "name"), [("mtil-1", "1"), ("mtil-2", "2")])
def test_published_accuracies_by_dataset_average_to_the_printed_rows(order, name):
    by_dataset = tomllib.loads((PUBLISHED / "per_dataset.toml").read_text())[order]
    assert set(by_dataset["zero_shot"]) == set(Manifests().order(order).tasks)
    for row in load_table(name).rows:
        for metric, numbers in by_dataset.get(row.recipe, {}).items() if row.recipe != "zero_shot" else ():
            assert len(numbers) == (10 if metric == "transfer" else 11)
            mean = sum(numbers.values()) / len(numbers)
            assert mean == pytest.approx(getattr(row.published, metric), abs=0.12), (row.label, metric)


def test_without_runs_the_table_shows_what_it_needs_and_writes_nothing(tmp_path):
    result = table("1", "--runs", tmp_path)
    assert "needs 11 runs: 11 missing" in result.stderr
    assert str(tmp_path / "mtil-1/gift-seed42") in result.stderr
    assert line_of(result.stdout, "GIFT").split() == ["GIFT", "69.3", "-", "77.3", "-", "86.0", "-", "0"]
    assert list(tmp_path.iterdir()) == []


def test_ours_stand_beside_the_published_with_deviation_and_difference(tmp_path):
    for seed, last in ((1, 75.0), (2, 76.0), (3, 77.0)):
        make_run(tmp_path, "l2", seed, "mtil-1", (60.0, 66.0, last))
    result = table("1", "--runs", tmp_path, "--seeds", "1,2,3")
    assert "needs 31 runs: 3 there, 28 missing" in result.stderr  # the zero-shot model has nothing to draw: one seed
    line = line_of(result.stdout, "l2 baseline")
    assert "60.0 ± 0.0 (-1.0)" in line
    assert "76.0 ± 1.0 (+0.1)" in line
    assert line.split()[-1] == "3"
    assert "commit abc123" in result.stdout


def test_a_doubtful_number_is_marked_and_explained(tmp_path):
    text = table("1", "--runs", tmp_path).stdout
    assert "62.7 [1]" in line_of(text, "l2 baseline")
    assert "[1] l2 baseline, order I (suspicious): Avg. 62.7 does not fit" in text
    assert "56.9 [" in line_of(table("2", "--runs", tmp_path).stdout, "iCaRL")


def test_the_table_is_written_in_four_forms(tmp_path):
    make_run(tmp_path, "gift", 1, "mtil-1", (69.123456789, 77.0, 86.0))
    table("1", "--runs", tmp_path, "--seeds", "1", "--out", tmp_path / "out")
    forms = {path.suffix: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert sorted(forms) == [".csv", ".md", ".tex", ".txt"]
    gift = next(row for row in csv.DictReader(io.StringIO(forms[".csv"])) if row["recipe"] == "gift")
    assert (gift["transfer"], gift["transfer_published"], gift["seeds"]) == ("69.123456789", "69.3", "1")
    l2 = next(row for row in csv.DictReader(io.StringIO(forms[".csv"])) if row["recipe"] == "l2")
    assert (l2["avg"], l2["avg_published"], l2["avg_published_doubt"]) == ("", "62.7", "N2")
    assert "| GIFT | 69.3 | 69.1 (-0.2) |" in forms[".md"]
    assert r"GIFT & 69.3 & 69.1 (-0.2) &" in forms[".tex"]
    assert r"icarl\_smoothed" in forms[".tex"]
    assert forms[".tex"].count(r"\begin{") == forms[".tex"].count(r"\end{") == 2


def test_on_the_mini_world_ranks_stand_beside_the_papers(tmp_path):
    ours = {"zero_shot": 60.0, "finetune": 40.0, "l2": 50.0, "gift": 70.0}
    for recipe, transfer in ours.items():
        make_run(tmp_path, recipe, 1, "mini", (transfer, 50.0, transfer))
    text = table("1", "--world", "mini", "--runs", tmp_path, "--seeds", "1").stdout
    assert line_of(text, "GIFT").split()[1:5] == ["69.3", "#2", "70.0", "#1"]
    assert line_of(text, "Zero-shot").split()[1:5] == ["69.4", "#1", "60.0", "#2"]
    assert line_of(text, "LwF ").split()[1:3] == ["56.9", "-"]  # no run of it: it takes no part in the ranking
    # Differences of ranks, Transfer: 1 1 0 0, so 1 - 6 * 2 / (4 * 15); Last: 2 2 0 0. Avg.: ours are all equal, so none.
    assert "over 4 rows: Transfer +0.80, Last +0.20." in text
    assert "share no scale with ours" in text


def test_table_2_runs_on_the_second_order_of_each_world(tmp_path):
    assert "Table 2 on order mini-2" in table("2", "--world", "mini", "--runs", tmp_path).stderr
    assert "Table 2 on order mtil-2" in table("2", "--runs", tmp_path).stderr
    assert "Table 2 on order mini needs" in table("2", "--order", "mini", "--runs", tmp_path).stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 2}, "seed is 2 there and 1 here"),
        ({"order": "mini-2"}, "order is 'mini-2' there and 'mini' here"),
        ({"model": "ViT-B-16"}, "model is 'ViT-B-16' there and 'mini' here"),
        ({"overrides": ["steps=3"]}, "overrides is ['steps=3'] there and [] here"),
    ],
)
def test_a_run_that_was_asked_for_otherwise_does_not_count(tmp_path, changes, told):
    make_run(tmp_path, "finetune", 1, record=changes)
    result = table("1", "--world", "mini", "--runs", tmp_path, "--seeds", "1")
    assert "1 occupied" in result.stderr
    assert told in result.stderr
    assert "#" not in line_of(result.stdout, "Continual Finetune")


def test_a_run_made_with_another_version_of_its_recipe_does_not_count(tmp_path):
    old = load_recipe("finetune", "mini").as_table()
    make_run(tmp_path, "finetune", 1, record={"recipe": old | {"steps": old["steps"] + 1}})
    assert "recipe.steps is" in table("1", "--world", "mini", "--runs", tmp_path, "--seeds", "1").stderr


def test_what_changes_no_number_tells_no_runs_apart(tmp_path):
    recipe = load_recipe("finetune", "mini").as_table()
    make_run(tmp_path, "finetune", 1, record={"recipe": recipe | {"title": "Another name", "log_every": 77}})
    assert "1 there" in table("1", "--world", "mini", "--runs", tmp_path, "--seeds", "1").stderr


def test_a_run_is_found_by_what_it_is_and_not_by_its_folders_name(tmp_path):
    make_run(tmp_path, "finetune", 1).rename(tmp_path / "mini/some-name")
    assert "some-name" in table("1", "--world", "mini", "--runs", tmp_path, "--seeds", "1").stderr


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    make_run(tmp_path, "finetune", 1, finished=False)
    assert "2 of 6 tasks done" in table("1", "--world", "mini", "--runs", tmp_path, "--seeds", "1").stderr


def test_runs_on_other_shards_do_not_count(tmp_path):
    tasks = Manifests().order("mini").tasks
    ours, other = make_index(tmp_path / "ours", tasks, 3), make_index(tmp_path / "other", tasks, 4)
    digest = hashlib.sha256((ours / "index.parquet").read_bytes()).hexdigest()
    make_run(tmp_path / "runs", "gift", 1, record={"shards": {"path": "moved", "index_sha256": digest}})
    arguments = ("captions", "--world", "mini", "--runs", tmp_path / "runs", "--seeds", "1")
    assert "1 there" in table(*arguments, "--shards", ours).stderr
    assert "shards.index_sha256 is" in table(*arguments, "--shards", other).stderr


def test_sets_of_shards_are_told_apart_by_their_label(tmp_path):
    make_run(tmp_path, "gift", 1, numbers=(60.0, 60.0, 60.0))
    make_run(tmp_path, "gift", 1, numbers=(55.0, 55.0, 55.0), label="-25-steps")
    text = table("steps", "--world", "mini", "--runs", tmp_path, "--seeds", "1").stdout
    assert "60.0" in line_of(text, "w/ AWC, 50")
    assert "55.0" in line_of(text, "w/ AWC, 25")


def test_fewer_images_than_the_recipe_asks_for_are_told(tmp_path):
    folder = make_run(tmp_path, "gift", 1)
    rows = make_index(tmp_path / "out", ["mini_shapes"], 3) / "index.parquet"
    (folder / "replay").mkdir()
    rows.rename(folder / "replay/mini_shapes.parquet")
    asked = load_recipe("gift", "mini").replay.num_images
    result = table("captions", "--world", "mini", "--runs", tmp_path, "--seeds", "1")
    assert f"replayed 3 images of a task where its recipe asks for {asked}." in " ".join(result.stdout.split())
    assert f"3 of {asked} images a task" in result.stderr


def test_other_readings_of_a_run_stand_under_its_row(tmp_path):
    folder = make_run(tmp_path, "moe_adapter", 1, "mtil-1")
    summary = json.loads((folder / "summary.json").read_text())
    numbers = {"transfer": 41.0, "avg": 42.0, "last": 43.0, "forgetting": 0.0}
    (folder / "summary.json").write_text(json.dumps(summary | {"readings": {"routed by sample": numbers}}))
    text = table("1", "--runs", tmp_path, "--seeds", "1").stdout
    assert line_of(text, "MoE-Adapter: routed by sample").split()[-7:] == ["-", "41.0", "-", "42.0", "-", "43.0", "1"]


def test_every_missing_run_is_printed_as_a_command_of_its_own(tmp_path):
    make_run(tmp_path, "gift", 1, "mtil-1")
    arguments = ("teacher", "--runs", tmp_path, "--seeds", "1,2", "--shards", "out folder", "--commands", "--only", "gift_without_awc")
    make_index(tmp_path / "out folder", ["aircraft"], 1)
    lines = table(*arguments[:6], tmp_path / "out folder", *arguments[7:]).stdout.splitlines()
    assert len(lines) == 2
    words = shlex.split(lines[1])
    assert words[:6] == ["gift-train", "run", "--order", "mtil-1", "--recipe", "gift_without_awc"]
    assert words[words.index("--shards") + 1] == str(tmp_path / "out folder")
    assert words[words.index("--seed") + 1] == "2"
    assert words[words.index("--out") + 1] == str(tmp_path / "mtil-1/gift_without_awc-seed2")


def test_what_the_runs_work_with_is_handed_on(tmp_path):
    make_index(tmp_path / "out", ["aircraft"], 1)
    shared = ("--evaluation-cache", "kept", "--image-cache-gb", "1.5", "--compile", "--num-workers", "3")
    arguments = ("teacher", "--runs", tmp_path, "--shards", tmp_path / "out", "--only", "gift_without_awc", "--commands")
    words = shlex.split(table(*arguments, *shared).stdout)
    for flag in ("--evaluation-cache", "--image-cache-gb", "--num-workers"):
        assert words[words.index(flag) + 1] == shared[shared.index(flag) + 1]
    assert "--compile" in words
    assert not {"--evaluation-cache", "--image-cache-gb", "--compile"} & set(shlex.split(table(*arguments).stdout))


def test_each_method_is_handed_its_own_references(tmp_path):
    (tmp_path / "web.txt").write_text("a fox\n")
    references = ("--reference-images", "tiny", "--reference-images", "zscl=imagenet", "--reference-captions", tmp_path / "web.txt")
    lines = table("1", "--runs", tmp_path, *references, "--commands").stdout.splitlines()
    words = {shlex.split(line)[5]: shlex.split(line) for line in lines}
    assert words["zscl"][words["zscl"].index("--reference-images") + 1] == "imagenet"
    assert words["zscl"][words["zscl"].index("--reference-captions") + 1] == str(tmp_path / "web.txt")
    assert "--shards" not in words["zscl"]
    assert words["moe_adapter"][words["moe_adapter"].index("--reference-images") + 1] == "tiny"
    assert all(not any("--reference" in word for word in line) for recipe, line in words.items() if recipe not in ("zscl", "moe_adapter"))


def test_runs_on_other_manifests_do_not_count(tmp_path):
    manifests = Manifests()
    make_run(tmp_path, "finetune", 1, record={"manifests_sha256": manifests_digest(manifests, manifests.order("mini"))})
    arguments = ("1", "--world", "mini", "--runs", tmp_path, "--seeds", "1")
    assert "1 there" in table(*arguments).stderr
    task = manifests.task("mini_flags")
    (tmp_path / "own/tasks").mkdir(parents=True)
    shipped = Path(str(resources.files("gift_manifests"))) / f"tasks/{task.name}.toml"
    (tmp_path / f"own/tasks/{task.name}.toml").write_text(shipped.read_text().replace(task.templates[0], "a sketch of {}."))
    assert "the manifests (class names, templates, data, counts) are not those" in table(*arguments, "--manifests", tmp_path / "own").stderr


def test_runs_on_other_reference_sentences_do_not_count(tmp_path):
    web = tmp_path / "web.txt"
    web.write_text("a fox\n")
    digest = hashlib.sha256(web.read_bytes()).hexdigest()
    record = {"reference_images": "imagenet", "reference_captions": {"path": "moved", "sha256": digest}}
    make_run(tmp_path / "runs", "zscl", 1, "mtil-1", record=record)
    arguments = ("1", "--runs", tmp_path / "runs", "--seeds", "1", "--reference-images", "imagenet", "--reference-captions", web)
    assert "1 there" in table(*arguments).stderr
    web.write_text("a hen\n")
    assert "reference_captions.sha256 is" in table(*arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("teachers",), "Unknown table 'teachers'. Did you mean 'teacher'?"),
        (("1", "--world", "mimi"), "Unknown world 'mimi'. Did you mean 'mini'?"),
        (("1", "--seeds", "1,two"), "--seeds '1,two' should be different whole numbers"),
        (("1", "--run", "--commands"), "Give either --run or --commands."),
        (("1", "--commands", "--only", "gfit"), "--only: Unknown recipe 'gfit'. Did you mean 'gift'?"),
        (("steps", "--shards", "25-step=out"), "--shards 25-step=out: Unknown label '25-step'. Did you mean '25-steps'?"),
        (("1", "--shards", "nowhere"), "--shards nowhere has no index.parquet"),
        (("1", "--set", "stepz=3"), "Unknown key 'stepz'. Did you mean 'steps'?"),
        (
            ("1", "--run", "--only", "gift"),
            "gift, seed 42 cannot be run: it looks at synthetic images: give their output folder with --shards",
        ),
        (("1", "--run", "--only", "zscl"), "zscl, seed 42 cannot be run: it looks at reference images: give their folder or tars with"),
        (
            ("1", "--run", "--only", "zscl", "--reference-images", "images"),
            "zscl, seed 42 cannot be run: it looks at the sentences of a file: give it with --reference-captions",
        ),
        (("1", "--reference-images", "zsc=images"), "--reference-images zsc=images: Unknown method 'zsc'. Did you mean 'zscl'?"),
        (("1", "--run", "--only", "moe_adapter"), "moe_adapter, seed 42 cannot be run: it looks at images of no task"),
    ],
)
def test_what_a_user_gets_wrong_is_told_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(GiftError) as caught:
        table(*arguments, "--runs", tmp_path)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_another_run_is_never_run_over(tmp_path):
    make_run(tmp_path, "finetune", 1, record={"overrides": ["steps=3"]})
    with pytest.raises(GiftError, match=r"finetune-seed1 holds another run: overrides is .* Move it away, or give another --runs"):
        table("1", "--world", "mini", "--runs", tmp_path, "--seeds", "1", "--run", "--only", "finetune")


def test_a_damaged_record_is_named(tmp_path):
    (make_run(tmp_path, "finetune", 1) / "run.json").write_text("{")
    with pytest.raises(GiftError, match=r"finetune-seed1/run.json is not a JSON object: .* Restore it, or choose another folder"):
        table("1", "--world", "mini", "--runs", tmp_path)


def test_a_table_of_ones_own_is_checked(tmp_path):
    path = tmp_path / "own.toml"
    good = 'title = "T"\nheading = "H"\nsource = "S"\n[orders]\nmini = "mini"\n[[row]]\nlabel = "A"\nrecipe = "gift"\n'
    path.write_text(good)
    assert load_table(str(path)).rows[0].published is None
    for change, message in (
        ('about = "N77"\n', "Unknown note 'N77'"),
        ('doubtful = { lats = "N2" }\n', "Unknown metric 'lats'. Did you mean 'last'?"),
        ('recipes = "gift"\n', "Unknown key 'recipes'. Did you mean 'recipe'?"),
        ('[[row]]\nlabel = "B"\n', "[[row]] 2: row 'B' has neither a recipe nor printed numbers."),
        ("published = {}\n", "a printed row has at least one of transfer, avg, last."),
    ):
        path.write_text(good + change)
        with pytest.raises(GiftError) as caught:
            load_table(str(path))
        assert message in str(caught.value)
    for metrics, message in (('["lats"]', "Unknown metric 'lats'. Did you mean 'last'?"), ("[]", "the key 'metrics' is missing or empty")):
        path.write_text(f"metrics = {metrics}\n{good}")
        with pytest.raises(GiftError, match=re.escape(message)):
            load_table(str(path))
    path.write_text(good.replace('source = "S"\n', ""))
    with pytest.raises(GiftError, match="the key 'source' is missing"):
        load_table(str(path))


def test_seeds_shards_and_durations_read_as_written():
    assert parse_seeds("1, 2,3") == [1, 2, 3]
    assert parse_shards(["out", "25-steps=fewer"], load_table("steps")) == {None: Path("out"), "25-steps": Path("fewer")}
    by_url = parse_shards(["http://host/a=b", "25-steps=http://host/fewer"], load_table("steps"))
    assert {label: str(folder) for label, folder in by_url.items()} == {None: "http://host/a=b", "25-steps": "http://host/fewer"}
    assert [spoken(seconds) for seconds in (12, 200, 18420)] == ["12 s", "3 min 20 s", "5 h 07 min"]


def test_rows_of_methods_that_are_not_here_are_printed_and_need_no_run(tmp_path):
    make_run(tmp_path, "moe_adapter", 1, "x-tail", (57.0, 63.5, 71.0))
    result = table("x-tail", "--runs", tmp_path, "--seeds", "1")
    assert "needs 13 runs: 1 there, 12 missing" in result.stderr
    assert line_of(result.stdout, "Dual-RAIL").split() == ["Dual-RAIL", "[1]", "-", "-", "71.3", "-", "82.3", "-", "-"]
    assert line_of(result.stdout, "LADA").split() == ["LADA", "[1]", "61.5", "-", "72.7", "-", "83.1", "-", "-"]
    moe = line_of(result.stdout, "MoE-Adapter").split()
    assert moe == ["MoE-Adapter", "[1]", "[2]", "56.0", "57.0", "(+1.0)", "63.0", "63.5", "(+0.5)", "70.5", "71.0", "(+0.5)", "1"]
    assert "[1] ZSCL, MoE-Adapters, Dual-RAIL and LADA on X-TAIL (secondary note):" in " ".join(result.stdout.split())
    commands = table("x-tail", "--runs", tmp_path, "--seeds", "1", "--commands").stdout
    assert len(commands.splitlines()) == 12
    assert "dual" not in commands.lower()


def test_few_shots_have_a_table(tmp_path):
    text = table("few-shot", "--runs", tmp_path).stdout
    assert "MTIL order I, 5 shots (order mtil-few-shot-5)" in text
    assert line_of(text, "ConDU").split()[2:] == ["70.0", "-", "72.3", "-", "76.6", "-", "0"]
    assert "Table few-shot on order mini-few-shot" in table("few-shot", "--world", "mini", "--runs", tmp_path).stderr


@pytest.mark.parametrize(
    ("order", "cells"),
    [
        ("cil-cifar100-10", ["85.2", "80.0", "(-5.2)", "77.5", "70.0", "(-7.5)"]),
        ("cil-cifar100-50", ["83.8", "80.0", "(-3.8)", "75.2", "70.0", "(-5.2)"]),
        ("cil-tinyimagenet-10", ["80.2", "80.0", "(-0.2)", "76.3", "70.0", "(-6.3)"]),
    ],
)
def test_class_incremental_numbers_are_those_printed_for_the_order(tmp_path, order, cells):
    make_run(tmp_path, "moe_adapter", 1, order, (None, 80.0, 70.0))
    text = table("class-incremental", "--order", order, "--runs", tmp_path, "--seeds", "1").stdout
    assert text.splitlines()[2].split() == ["Method", "Avg.", "paper", "ours", "Last", "paper", "ours", "seeds"]
    assert line_of(text, "MoE-Adapter").split()[2:] == [*cells, "1"]
    assert "MoE-Adapters, class-incremental (code):" in " ".join(text.split())


def test_an_order_that_nothing_was_printed_for_compares_ranks_with_the_first(tmp_path):
    text = table("class-incremental", "--world", "mini", "--runs", tmp_path).stdout
    assert line_of(text, "MoE-Adapter").split()[2:6] == ["85.2", "-", "77.5", "-"]
    make_run(tmp_path, "moe_adapter", 42, "mini-cil", (None, 80.0, 70.0))
    text = table("class-incremental", "--world", "mini", "--runs", tmp_path).stdout
    assert line_of(text, "MoE-Adapter").split()[2:] == ["85.2", "#1", "80.0", "#1", "77.5", "#1", "70.0", "#1", "1"]
    assert "The paper's numbers are of order cil-cifar100-10 and share no scale with ours" in " ".join(text.split())


def test_the_share_of_the_way_from_finetune_to_joint_stands_below(tmp_path):
    for recipe, avg, last in (("finetune", 50.0, 60.0), ("joint", 70.0, 80.0), ("gift", 65.0, 70.0), ("l2", 45.0, 65.0)):
        make_run(tmp_path, recipe, 1, "mini-few-shot", (50.0, avg, last))
    arguments = ("few-shot", "--world", "mini", "--runs", tmp_path, "--seeds", "1", "--out", tmp_path / "out")
    told = "Share of the way from finetune to joint, Avg. / Last: l2 baseline -25 % / 25 %; GIFT 75 % / 50 %."
    assert told in " ".join(table(*arguments).stdout.split())
    rows = {row["recipe"]: row for row in csv.DictReader((tmp_path / "out/few-shot.csv").open())}
    assert (rows["gift"]["avg_share_of_joint"], rows["gift"]["last_share_of_joint"]) == ("0.75", "0.5")
    assert rows["joint"]["avg_share_of_joint"] == rows["lwf"]["avg_share_of_joint"] == ""
    assert rows["condu"]["label"] == "ConDU"


def test_what_is_evaluated_besides_is_handed_on(tmp_path):
    besides = ("--label-space", "known", "--label-space", "union-seen", "--also-evaluate", "mini_flags")
    words = shlex.split(table("x-tail", "--runs", tmp_path, "--only", "finetune", "--commands", *besides).stdout)
    assert [words[place + 1] for place, word in enumerate(words) if word == "--label-space"] == ["known", "union-seen"]
    assert words[words.index("--also-evaluate") + 1] == "mini_flags"
    with pytest.raises(GiftError, match=r"--label-space: Unknown label space 'unknown'"):
        table("x-tail", "--runs", tmp_path, "--label-space", "unknown")


def test_an_order_of_one_task_has_no_table(tmp_path):
    order = tmp_path / "my" / "orders" / "single.toml"
    order.parent.mkdir(parents=True)
    order.write_text(
        'name = "single"\ndisplay_name = "Single"\npretraining_source = "mini_base"\nrecipes = "mini"\ntasks = ["mini_flags"]\n'
    )
    with pytest.raises(GiftError, match=r"'single' has one task, and Transfer needs two"):
        table("1", "--order", "single", "--manifests", tmp_path / "my", "--runs", tmp_path / "runs")
