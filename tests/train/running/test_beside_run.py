"""Runs that look at datasets and image-caption pairs beside their order: what is recorded, shown, kept when resumed, and refused."""

import json

import pytest

from gift_train.notebook.run import Run


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def alone(world, tmp_path):
    """The order of the tests' world without its stripes."""
    path = tmp_path / "alone.toml"
    text = (world.root / "manifests/orders/pair.toml").read_text()
    path.write_text(text.replace('"pair"', '"alone"').replace(', "stripes"', ""))
    return f"--order={path}"


@pytest.fixture
def pairs(world, tmp_path):
    """Six pictures of the tests' world with two captions each, in a folder called photos."""
    folder, lines = tmp_path / "photos", ["image,caption"]
    folder.mkdir()
    for number, path in enumerate(sorted((world.root / "data/colours/test").glob("*/*.png"))[::3]):
        (folder / f"{number}.png").write_bytes(path.read_bytes())
        lines += [f"{number}.png,a {path.parent.name} picture", f"{number}.png,picture {number}"]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_datasets_and_pairs_are_evaluated_before_and_after_each_task(quick_run, gift_train, world, alone, pairs, tmp_path):
    out = tmp_path / "run"
    flags = (alone, "--also-evaluate=stripes", f"--retrieval={pairs}")
    outcome = quick_run("finetune", out, *flags)
    assert outcome.code == 0, outcome.err
    assert quick_run("finetune", tmp_path / "plain", alone).code == 0
    found, plain = read(out / "accuracy_matrix.json"), read(tmp_path / "plain/accuracy_matrix.json")
    assert {key: found[key] for key in plain} == plain, "nothing else changes"
    assert found["also"]["datasets"] == ["stripes"]
    assert [len(found["also"]["zero_shot"]), len(found["also"]["matrix"]), len(found["retrieval"]["photos"]["after"])] == [1, 1, 1]
    summary = read(out / "summary.json")
    assert summary["also"] == {"stripes": {"zero_shot": found["also"]["zero_shot"][0], "last": found["also"]["matrix"][0][0]}}
    assert summary["retrieval"]["photos"]["last"] == found["retrieval"]["photos"]["after"][-1]
    assert found["retrieval"]["photos"]["after"][-1] != found["retrieval"]["photos"]["zero_shot"]

    weights = out / "checkpoints/task-01-colours.safetensors"
    named = [flag for flag in world.arguments if not flag.startswith(("--order", "--model"))]
    evaluated = gift_train("evaluate", *named, *flags, "--checkpoint", weights, f"--model={world.root / 'model'}", "--json")
    assert evaluated.code == 0, evaluated.err
    told = json.loads(evaluated.out)
    assert (told["also"], told["retrieval"]) == (
        {"stripes": found["also"]["matrix"][0][0]},
        {"photos": summary["retrieval"]["photos"]["last"]},
    )

    run = Run(out)
    assert run.also.loc["colours", "stripes"] == found["also"]["matrix"][0][0]
    assert run.retrieval["photos"].loc["zero-shot", "text_to_image@5"] == found["retrieval"]["photos"]["zero_shot"]["text_to_image"]["5"]
    watched = gift_train("watch", out, "--once").out
    assert "beside the order (%)" in watched
    assert "photos I→T R@1" in watched
    reported = gift_train("report", out, tmp_path / "plain", "--out", tmp_path / "report")
    assert "retrieval, photos: last (change since zero-shot)" in reported.out
    page = (tmp_path / "report/alone/index.html").read_text()
    assert 'id="beside"' in page
    lines = (tmp_path / "report/alone/beside.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * (1 + 6)
    assert lines[1].startswith("finetune,42,zero_shot,stripes,accuracy,")


@pytest.mark.parametrize("method", ["joint", "zero_shot"])
def test_where_weights_stay_the_last_values_stand_again(quick_run, pairs, tmp_path, method):
    assert quick_run(method, tmp_path / "run", f"--retrieval={pairs}", f"--evaluation-cache={tmp_path / 'kept'}").code == 0
    assert len(list((tmp_path / "kept").glob("retrieval-photos-*.npy"))) == 1
    found = read(tmp_path / "run/accuracy_matrix.json")["retrieval"]["photos"]
    assert len(found["after"]) == 2
    assert found["after"][0] == found["after"][1]
    assert (found["after"][0] == found["zero_shot"]) is (method == "zero_shot")


def test_a_resumed_run_keeps_its_lists_and_refuses_others(quick_run, world, alone, pairs, tmp_path, monkeypatch):
    out, flags = tmp_path / "run", (alone, "--also-evaluate=stripes", f"--retrieval={pairs}")
    monkeypatch.setattr("gift_train.training.run.train_task", lambda *_: (_ for _ in ()).throw(KeyError("killed")))
    with pytest.raises(KeyError):
        quick_run("finetune", out, *flags)
    monkeypatch.undo()
    for others, told in (
        ((alone,), "also_evaluate is ['stripes'] there and None here"),
        ((alone, "--also-evaluate=stripes"), "holds another run: it evaluates --retrieval photos"),
        ((*flags[:2], f"--retrieval={pairs.rename(tmp_path / 'moved')}"), "holds another run: it does not evaluate --retrieval moved"),
    ):
        outcome = quick_run("finetune", out, *others)
        assert outcome.code == 2
        assert told in outcome.err, outcome.err
    (tmp_path / "moved").rename(pairs)
    (pairs / "captions.csv").write_text((pairs / "captions.csv").read_text().replace("picture 0", "picture zero"))
    assert "the pairs of --retrieval photos" in quick_run("finetune", out, *flags).err
    (pairs / "captions.csv").write_text((pairs / "captions.csv").read_text().replace("picture zero", "picture 0"))
    assert quick_run("finetune", out, *flags).code == 0


def test_what_is_missing_or_makes_no_sense_is_told_before_training(quick_run, world, alone, pairs, tmp_path):
    twin = tmp_path / "other/photos"
    twin.parent.mkdir()
    twin.symlink_to(pairs)
    for flags, told in (
        (("--also-evaluate=strips",), "strips"),
        (("--also-evaluate=colours",), "--also-evaluate colours is evaluated anyway"),
        (("--also-evaluate=stripes", "--also-evaluate=stripes"), "--also-evaluate stripes stands twice"),
        (("--also-evaluate=base",), "base has no [data] table"),
        ((f"--retrieval={tmp_path / 'none'}",), "No image-caption pairs at"),
        ((f"--retrieval={pairs}", f"--retrieval={twin}"), "two sets of pairs are called photos"),
    ):
        outcome = quick_run("finetune", tmp_path / "run", alone, *flags)
        assert outcome.code == 2
        assert told in outcome.err.splitlines()[-1]
        assert not (tmp_path / "run").exists()


def test_an_image_that_does_not_decode_is_told_by_name_before_the_first_step(quick_run, pairs, tmp_path):
    (pairs / "3.png").write_bytes(b"no picture")
    outcome = quick_run("finetune", tmp_path / "run", f"--retrieval={pairs}")
    assert outcome.code == 2
    assert f"{pairs / '3.png'} does not decode as an image" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found: found["also"]["matrix"].append([50.0]), "is no percentage for each task"),
        (lambda found: found["retrieval"]["photos"]["zero_shot"]["text_to_image"].update({"5": 101.0}), "is no percentage for each task"),
        (lambda found: found["retrieval"]["photos"]["after"].pop(), "is no percentage for each task"),
    ],
)
def test_damaged_records_are_told(quick_run, gift_train, alone, pairs, tmp_path, change, told):
    out = tmp_path / "run"
    assert quick_run("zero_shot", out, alone, "--also-evaluate=stripes", f"--retrieval={pairs}").code == 0
    found = read(out / "accuracy_matrix.json")
    change(found)
    (out / "accuracy_matrix.json").write_text(json.dumps(found))
    outcome = gift_train("report", out)
    assert (outcome.code, told in outcome.err) == (2, True), outcome.err
