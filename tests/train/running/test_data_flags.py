"""How images are kept and loaded changes no number of a run."""

import json

import torch
from safetensors.torch import load_file


def read(path):
    return json.loads(path.read_text())


def same_runs(first, second):
    for path in sorted((first / "checkpoints").glob("*.safetensors")):
        one, other = load_file(path), load_file(second / "checkpoints" / path.name)
        if not all(torch.equal(one[name], other[name]) for name in one):
            return False
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in ("metrics.jsonl", "accuracy_matrix.json"))


def test_room_workers_and_caches_change_no_number(quick_run, world, gift_train, tmp_path):
    assert quick_run("gift", tmp_path / "plain").code == 0
    assert quick_run("gift", tmp_path / "streams", "--image-cache-gb", "0").code == 0
    cache = tmp_path / "cache"
    assert quick_run("gift", tmp_path / "cached", "--evaluation-cache", cache, "--num-workers", "1").code == 0
    assert same_runs(tmp_path / "plain", tmp_path / "streams")
    assert same_runs(tmp_path / "plain", tmp_path / "cached")
    files = sorted(path.name for path in cache.iterdir())
    assert [name.partition("-")[0] for name in files] == ["colours", "stripes"]

    checkpoint = tmp_path / "plain/checkpoints/task-02-stripes.safetensors"
    arguments = ["evaluate", *world.arguments, "--checkpoint", checkpoint, "--json"]
    plain, cached = gift_train(*arguments), gift_train(*arguments, "--evaluation-cache", cache)
    assert json.loads(plain.out)["accuracy"] == json.loads(cached.out)["accuracy"]
    assert sorted(path.name for path in cache.iterdir()) == files  # the run's files served


def test_the_share_waited_is_noted_beside_the_times(quick_run, tmp_path):
    assert quick_run("finetune", tmp_path / "run").code == 0
    waited = read(tmp_path / "run/timing.json")["waited"]
    assert waited.keys() == {"colours", "stripes"}
    assert all(0 < share < 1 for share in waited.values())
    assert min(waited.values()) <= read(tmp_path / "run/summary.json")["waited"] <= max(waited.values())


def test_class_texts_are_encoded_once_for_all_batches_of_an_evaluation(world, monkeypatch):
    from gift_shared.manifests import Manifests
    from gift_train.clip.load import load_backbone
    from gift_train.clip.model import Backbone
    from gift_train.data.tasks import load_test
    from gift_train.data.transforms import image_transforms
    from gift_train.evaluation.evaluate import evaluate_spaces
    from gift_train.evaluation.label_spaces import known
    from gift_train.methods.zero_shot import ZeroShot
    from gift_train.records.diagnostics.record import PredictionRecorder

    student = load_backbone(str(world.root / "model"), None)
    manifest = Manifests((world.root / "manifests",)).task("colours")
    images = load_test(manifest, world.root / "data", image_transforms(student.image_settings[0], student.resize_settings))
    encoded, encode = [], Backbone.encode_texts
    monkeypatch.setattr(Backbone, "encode_texts", lambda self, tokens: encoded.append(len(tokens)) or encode(self, tokens))
    noted, method = PredictionRecorder(), ZeroShot(ZeroShot.Config())
    evaluate_spaces(method, student, {"colours": (manifest, images)}, known([manifest]), batch_size=4, note=noted.note)
    assert len(noted.predicted["colours"]) > 1  # batches
    assert encoded == [len(manifest.class_names) * len(manifest.templates)]
