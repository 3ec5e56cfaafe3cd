"""gift-train export: a run's weights as a folder that others load, with its card, whole or not at all, and on the hub."""

import json
import shutil
import stat

import open_clip
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import load_file

from gift_shared.cards import is_untouched
from gift_shared.preemption import PreemptionNotice
from gift_train.export import command
from gift_train.options import RunOptions
from gift_train.training.run import train

FILES = {
    "README.md", "open_clip_config.json", "open_clip_model.safetensors", "config.json", "model.safetensors", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A finished run of gift; copied, never changed."""
    out = tmp_path_factory.mktemp("runs") / "my-run"
    settings = ["steps=3", "warmup_steps=1", "batch_size=6", "replay_batch_size=6", "learning_rate=1e-3", "replay.num_images=10"]
    root = world.root
    with PreemptionNotice() as notice:
        options = RunOptions(
            method="gift", order="pair", manifests=[root / "manifests"], data_root=root / "data", model=str(root / "model"), out=out,
            shards=str(root / "shards"), device="cpu", overrides=settings,
        )  # fmt: skip
        train(options, notice)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "my-run")


def edit(path, **changes):
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | changes))


def test_the_last_tasks_weights_are_what_plain_open_clip_loads(gift_train, finished, tmp_path):
    outcome = gift_train("export", finished, "--to", tmp_path / "model")
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / 'model'}: my-run after stripes (2 of 2), for open_clip and transformers\n")
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    kept = load_file(finished / "checkpoints/task-02-stripes.safetensors")
    network = open_clip.create_model(f"local-dir:{tmp_path / 'model'}")
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in kept.items())
    rights = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert len(rights) == 1, "the weights can be read by whoever may read the rest"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("task", ["1", "colours"])
def test_a_task_is_named_or_counted(gift_train, finished, tmp_path, task):
    assert gift_train("export", finished, "--to", tmp_path / "model", "--task", task).code == 0
    kept = load_file(finished / "checkpoints/task-01-colours.safetensors")
    found = load_file(tmp_path / "model/open_clip_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())


def test_the_card_tells_recipe_tasks_accuracies_and_shards_and_nothing_of_the_machine(gift_train, finished, tmp_path, world):
    assert gift_train("export", finished, "--to", tmp_path / "model").code == 0
    text = (tmp_path / "model/README.md").read_text()
    facts = yaml.safe_load(text.split("---\n")[1])
    assert facts["library_name"] == "open_clip"
    assert facts["pipeline_tag"] == "zero-shot-image-classification"
    assert facts["tags"] == ["clip", "continual-learning", "gift", "transformers"]
    accuracies = json.loads((finished / "accuracy_matrix.json").read_text())
    last = " | ".join(f"{value:.1f}" for value in accuracies["matrix"][-1])
    assert f"| after stripes | {last} |" in text
    summary = json.loads((finished / "summary.json").read_text())
    for name in ("transfer", "avg", "last"):
        assert f"| {name.capitalize()} | {summary[name]:.1f} |" in text
    record = json.loads((finished / "run.json").read_text())
    assert f"| sha256 of their index | `{record['shards']['index_sha256']}` |" in text
    assert "| Synthetic images | `shards` |" in text
    assert "| Tasks learned | `colours`, `stripes` |" in text
    assert str(world.root) not in text
    assert str(tmp_path) not in text
    earlier = gift_train("export", finished, "--to", tmp_path / "earlier", "--task", "1")
    assert earlier.code == 0
    assert "| Transfer |" not in (tmp_path / "earlier/README.md").read_text()


def test_a_base_model_and_a_dataset_of_the_hub_are_named_in_the_front_matter(gift_train, run, tmp_path):
    edit(run / "run.json", model="hf-hub:laion/clip@main", shards={"path": "hf://datasets/our/shards@" + "01" * 20, "index_sha256": "ab"})
    assert gift_train("export", run, "--to", tmp_path / "model").code == 0
    facts = yaml.safe_load((tmp_path / "model/README.md").read_text().split("---\n")[1])
    assert (facts["base_model"], facts["base_model_relation"], facts["datasets"]) == ("laion/clip", "finetune", ["our/shards"])


def test_an_export_again_changes_nothing_completes_what_is_missing_and_leaves_an_edited_card(gift_train, finished, tmp_path):
    to = tmp_path / "model"
    assert gift_train("export", finished, "--to", to).code == 0
    weights = {(to / "open_clip_model.safetensors").read_bytes()}
    for number in range(4):
        assert gift_train("export", finished, "--to", tmp_path / str(number)).code == 0
        weights.add((tmp_path / str(number) / "open_clip_model.safetensors").read_bytes())
    assert len(weights) == 1, "the weights depend on the folder's name, or on nothing at all"
    before = {path.name: path.read_bytes() for path in to.iterdir()}
    (to / "config.json").unlink()
    assert gift_train("export", finished, "--to", to).code == 0
    assert {path.name: path.read_bytes() for path in to.iterdir()} == before
    (to / "README.md").write_text("# Mine")
    outcome = gift_train("export", finished, "--to", to)
    assert outcome.code == 0
    assert "README.md was changed, so it stays" in outcome.out
    assert (to / "README.md").read_text() == "# Mine"


def test_what_cannot_be_exported_is_told_in_one_line(gift_train, run, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("years")
    assert gift_train("export", run, "--to", tmp_path / "model", "--task", "1").code == 0
    asked = {
        "is no run folder: it has no run.json": ("export", tmp_path / "other", "--to", tmp_path / "new"),
        "Unknown task 'strips'. Did you mean 'stripes'?": ("export", run, "--to", tmp_path / "new", "--task", "strips"),
        "Or a number from 1 to 2.": ("export", run, "--to", tmp_path / "new", "--task", "3"),
        "holds something else (thesis.tex). Choose another folder.": ("export", run, "--to", tmp_path / "other"),
        "holds other weights: another run's, or after another task.": ("export", run, "--to", tmp_path / "model"),
        "is a file; expected a folder": ("export", run, "--to", tmp_path / "other/thesis.tex"),
        "are of --push-to-hub": ("export", run, "--to", tmp_path / "new", "--private"),
        "to upload, log in": ("export", run, "--to", tmp_path / "new", "--push-to-hub", "our/model"),
    }
    for told, words in asked.items():
        outcome = gift_train(*words)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), told
        assert told in outcome.err
    for method, told in (
        ("moe_adapter", "adds parameters of its own to the CLIP"),
        ("rail", "reads images by more than"),
        ("zero_shot", "trains nothing"),
    ):
        record = json.loads((run / "run.json").read_text())
        edit(run / "run.json", recipe=record["recipe"] | {"method": method})
        outcome = gift_train("export", run, "--to", tmp_path / "new")
        assert outcome.code == 2
        assert f"{method} {told}" in outcome.err
    assert not (tmp_path / "new").exists()


def test_a_task_that_is_not_finished_is_told(gift_train, run, tmp_path):
    (run / "checkpoints/task-02-stripes.safetensors").unlink()
    outcome = gift_train("export", run, "--to", tmp_path / "model", "--task", "2")
    assert "has not finished stripes yet. Finished: colours." in outcome.err
    assert "after colours (1 of 2)" in gift_train("export", run, "--to", tmp_path / "model").out
    (run / "checkpoints/task-01-colours.safetensors").unlink()
    assert "has finished no task yet" in gift_train("export", run, "--to", tmp_path / "new").err


def test_an_export_that_is_interrupted_leaves_nothing(gift_train, finished, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "model_card", interrupt)  # after all weights
    assert gift_train("export", finished, "--to", tmp_path / "model").code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def hub(hub_site, tmp_path, monkeypatch):
    (tmp_path / "repositories").mkdir()
    site = hub_site(tmp_path / "repositories")
    site.use(monkeypatch, "hf_good")
    return site


def test_a_pushed_model_is_on_the_hub_whole_and_another_replaces_it_only_if_told(gift_train, finished, hub, tmp_path):
    flags = ("export", finished, "--to", tmp_path / "model", "--push-to-hub", "our/model")
    outcome = gift_train(*flags, "--private")
    assert outcome.code == 0, outcome.err
    assert f"{tmp_path / 'model'} is at http://127.0.0.1:{hub.port}/our/model (commit " in outcome.out
    assert is_untouched((tmp_path / "model/README.md").read_bytes())
    assert 'CLIPModel.from_pretrained("our/model")' in (tmp_path / "model/README.md").read_text()
    api = HfApi(endpoint=f"http://127.0.0.1:{hub.port}")
    assert api.repo_info("our/model").private
    assert set(api.list_repo_files("our/model")) - {".gitattributes"} == FILES
    first = ("export", finished, "--to", tmp_path / "first", "--task", "1", "--push-to-hub", "our/model")
    refused = gift_train(*first)
    assert refused.code == 2
    assert "our/model (main) holds another of models of gift-train: its open_clip_model.safetensors differs." in refused.err
    branch = gift_train(*first, "--replace", "--revision", "after-colours")
    assert branch.code == 0, branch.err
    assert "/our/model/tree/after-colours" in branch.out
    assert gift_train(*flags).code == 0


LOADED = """
import open_clip, torch, transformers
network, _, _ = open_clip.create_model_and_transforms("hf-hub:our/model")
model = transformers.CLIPModel.from_pretrained("our/model")
processor = transformers.CLIPProcessor.from_pretrained("our/model")
tokens = open_clip.get_tokenizer("hf-hub:our/model")(["a red square."])
told = processor(text=["a red square."], padding="max_length", return_tensors="pt")["input_ids"]
print(tokens.tolist() == told.tolist(), torch.equal(network.text_projection, model.text_projection.weight.T))
"""


@pytest.mark.slow
def test_what_is_pushed_loads_from_the_hub_in_both_libraries(gift_train, finished, hub, tmp_path):
    assert gift_train("export", finished, "--to", tmp_path / "model", "--push-to-hub", "our/model").code == 0
    assert hub.run(LOADED, token="hf_reader").splitlines()[-1] == "True True"
