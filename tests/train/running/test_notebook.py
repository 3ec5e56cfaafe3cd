"""gift_train.open_run: what a notebook gets is what the run's files and `gift-train evaluate` say."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import gift_train
from gift_shared.errors import ConfigError, ShardError
from gift_train.cli import main

QUICK = (
    "--set=steps=12",
    "--set=warmup_steps=1",
    "--set=learning_rate=1e-3",
    "--set=batch_size=6",
    "--set=replay_batch_size=6",
    "--set=log_every=2",
)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """A run of GIFT over both tasks of the drawn world."""
    out = tmp_path_factory.mktemp("notebook") / "gift"
    words = ["run", "--method=gift", *world.arguments, world.shards, *QUICK, "--set=replay.num_images=10", f"--out={out}"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["gift-train", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return out


@pytest.fixture(scope="module")
def run(folder):
    return gift_train.open_run(folder)


@pytest.fixture(scope="module")
def pictures(world):
    """The test images of a task in the order of its classes, and their labels."""
    names = ["red", "green", "blue"]
    paths = [path for name in names for path in sorted((world.root / "data/colours/test" / name).glob("*.png"))]
    return [Image.open(path) for path in paths], [path.parent.name for path in paths], names


def read(path):
    return json.loads(path.read_text())


def test_a_run_tells_what_its_files_say(run, folder):
    accuracies, summary = read(folder / "accuracy_matrix.json"), read(folder / "summary.json")
    assert run.tasks == ["colours", "stripes"]
    assert run.recipe == read(folder / "run.json")["recipe"]
    matrix = run.accuracy_matrix
    assert list(matrix.index) == ["zero-shot", "colours", "stripes"]
    assert list(matrix.columns) == ["colours", "stripes"]
    assert matrix.to_numpy().tolist() == [accuracies["zero_shot"], *accuracies["matrix"]]
    assert {name: getattr(run.metrics, name) for name in ("transfer", "avg", "last")} == {
        name: summary[name] for name in ("transfer", "avg", "last")
    }
    assert repr(run) == f"<gift, pair, seed 42: 2 of 2 tasks, {folder}>"


def test_the_log_has_a_row_for_each_logged_step_and_a_column_for_each_term(run, folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(run.log) == len(rows)
    assert run.log["loss"].tolist() == [row["loss"] for row in rows]
    for name in rows[0]["terms"]:
        assert run.log[f"terms/{name}"].tolist() == [row["terms"][name] for row in rows]


def test_replayed_images_are_those_of_the_shards_in_the_order_drawn(run, world, tmp_path):
    replayed = run.replayed("stripes")
    assert len(replayed) == 10
    assert list(replayed.rows["task"].unique()) == ["stripes"]
    (image, row), *others = list(replayed)
    assert image.size == (16, 16)
    assert row["caption"] == "a red square."
    assert replayed.keys == [row["sample_key"], *(other["sample_key"] for _, other in others)]
    assert run.replayed(2).keys == replayed.keys
    moved = run.replayed(2, shards=tmp_path)
    with pytest.raises(ShardError, match=r"stripes-00000.tar is missing"):
        moved.image(row["sample_key"])
    with pytest.raises(ShardError, match=r"The shards of these rows are not here: no folder .*/none. Say where they are"):
        run.replayed(2, shards=tmp_path / "none").image(row["sample_key"])
    (tmp_path / "shards").symlink_to(world.root / "shards/shards")
    assert np.array_equal(moved.image(row["sample_key"]), image)


@pytest.mark.parametrize("task", [None, "colours", "zero-shot"])
def test_a_loaded_model_classifies_as_the_run_evaluated(run, pictures, task):
    images, labels, class_names = pictures
    found = run.load_model(task, device="cpu").classify(images, class_names, ["a {} square.", "a {} square"], batch_size=4)
    right = 100 * np.mean([label == guess for label, guess in zip(labels, found.labels, strict=True)])
    assert right == pytest.approx(run.accuracy_matrix.loc["stripes" if task is None else task, "colours"])
    assert found.probabilities.shape == (15, 3)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    frame = found.to_frame()
    assert list(frame.columns) == class_names
    assert frame.idxmax(axis=1).tolist() == found.labels


def test_probabilities_are_softmax_of_scaled_similarities(run, pictures):
    images, _, class_names = pictures
    model = run.load_model(1, device="cpu")
    found = model.classify(images[:2], class_names, ["{}"])
    logits = float(model.backbone.scale) * model.image_features(images[:2]) @ model.text_features(class_names).T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(model.image_features(images[:2]), axis=1), 1, rtol=1e-5)


def test_an_images_mode_and_size_do_not_matter_and_no_images_are_fine(run, pictures):
    model = run.load_model(device="cpu")
    grey = Image.new("L", (40, 20), 128)
    assert model.classify([grey, grey.convert("RGBA")], ["a", "b"]).probabilities.shape == (2, 2)
    assert model.classify([], ["a", "b"]).labels == []


def test_loading_a_model_leaves_the_notebooks_random_numbers_alone(run):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    run.load_model("zero-shot", device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda run: run.load_model("colour"), "Unknown task 'colour'. Did you mean 'colours'?"),
        (lambda run: run.load_model(3), "has tasks 1 to 2, found 3; 0 stands before the first."),
        (lambda run: run.replayed("zero-shot"), "has no replayed images of zero-shot"),
        (lambda run: run.load_model(device="cpu").classify([], "red fox"), "class_names must be a list of different names"),
        (lambda run: run.load_model(device="cpu").classify([], ["a", "a"]), "class_names must be a list of different names"),
        (lambda run: run.load_model(device="cpu").classify([], ["a"], ["a photo"]), "templates must be a list of texts with {}"),
        (lambda run: run.load_model(device="cpu").text_features("a"), "texts must be a list of texts"),
    ],
)
def test_mistakes_are_told_in_one_line(run, act, told):
    with pytest.raises(ConfigError) as error:
        act(run)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run folder: it has no run.json"):
        gift_train.open_run(tmp_path)


def test_a_run_under_way_tells_what_is_there(folder, tmp_path):
    record, accuracies = read(folder / "run.json"), read(folder / "accuracy_matrix.json")
    (tmp_path / "run.json").write_text(json.dumps(record))
    begun = gift_train.open_run(tmp_path)
    assert begun.accuracy_matrix.shape == (0, 2)
    (tmp_path / "accuracy_matrix.json").write_text(json.dumps(accuracies | {"matrix": accuracies["matrix"][:1]}))
    assert list(begun.accuracy_matrix.index) == ["zero-shot", "colours"]
    with pytest.raises(ConfigError, match=r"has 1 of 2 tasks; its metrics are known once all are done"):
        _ = begun.metrics
    with pytest.raises(ConfigError, match=r"task-01-colours.safetensors is not there; found are: none"):
        begun.load_model(device="cpu")


WITHOUT_PANDAS = """
import sys

class NoPandas:
    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoPandas())
import gift_train
run = gift_train.open_run(sys.argv[1])
assert "torch" not in sys.modules
print(run.metrics.last, len(run.replayed(1)))
try:
    run.accuracy_matrix
except Exception as error:
    print(error)
"""


def test_without_pandas_and_torch_the_numbers_are_there_and_a_table_says_what_to_install(folder, run):
    done = subprocess.run([sys.executable, "-c", WITHOUT_PANDAS, str(folder)], capture_output=True, text=True, check=True)
    numbers, told = done.stdout.splitlines()
    assert numbers == f"{run.metrics.last} 10"
    assert told == "A table as a DataFrame needs pandas: pip install 'gift-cl[notebook]'."
