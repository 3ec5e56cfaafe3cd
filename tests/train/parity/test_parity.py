"""Golden numbers of the published implementations, replayed through the code that training runs; see golden/parity/README.md."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gift_shared.errors import ConfigError, DataError
from gift_train.parity.bounds import ON_CPU, bounds_on
from gift_train.parity.replay import FIRST_LOSS_ONLY, VARIANTS, Fixture, _check_variant, check_fixture

GOLDEN = Path(__file__).parents[2] / "golden/parity"
AFTER_GIFT = GOLDEN.parent / "after_gift"


@pytest.fixture(scope="module")
def fixture():
    return Fixture(GOLDEN)


@pytest.fixture(scope="module")
def fixtures(fixture):
    """By variant, the fixture that holds it."""
    own_form = ("rail",)
    opened = [fixture, *(Fixture(path) for path in sorted(AFTER_GIFT.glob("*.safetensors")) if path.stem not in own_form)]
    return {variant: one for one in opened for variant in one.golden}


@pytest.fixture
def copied(tmp_path):
    """The fixture where a test may damage it."""
    for name in ("fixture.json", "fixture.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    return tmp_path


def change_tensors(folder, change):
    tensors = load_file(folder / "fixture.safetensors")
    change(tensors)
    save_file(tensors, folder / "fixture.safetensors")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_arrives_at_the_golden_weights(fixtures, variant, device):
    bounds = bounds_on(torch.device(device))
    result = _check_variant(fixtures[variant], variant, torch.device(device))
    assert result.agrees
    if variant not in FIRST_LOSS_ONLY:
        assert result.weight_difference <= bounds.weight
        assert result.loss_difference is None or result.loss_difference <= bounds.loss


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_rail_arrives_at_the_golden_regression_and_scores(device):
    (result,) = check_fixture(AFTER_GIFT / "rail.safetensors", torch.device(device))
    assert (result.name, result.agrees) == ("rail", True), result


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors, numbers: tensors.pop("scores/1"), "no tensor 'scores/1'"),
        (lambda tensors, numbers: numbers["tasks"][2].update(num_classes=999), "its tasks have"),
        (lambda tensors, numbers: numbers.pop("ridge"), "lack or garble one of RAIL's.*ridge"),
        (lambda tensors, numbers: numbers.update(inputs="nowhere.safetensors"), "nowhere.safetensors is not a readable fixture"),
        (lambda tensors, numbers: tensors["weights/1"].add_(1e-3), None),
    ],
)
def test_a_fixture_of_rail_that_is_not_whole_is_told(tmp_path, change, told):
    tensors, numbers = load_file(AFTER_GIFT / "rail.safetensors"), json.loads((AFTER_GIFT / "rail.json").read_text())
    numbers["inputs"] = str(GOLDEN / "fixture.safetensors")
    change(tensors, numbers)
    save_file(tensors, tmp_path / "rail.safetensors")
    (tmp_path / "rail.json").write_text(json.dumps(numbers))
    if told is None:
        (result,) = check_fixture(tmp_path / "rail.safetensors")
        assert not result.agrees
        return
    with pytest.raises(DataError, match=told):
        next(check_fixture(tmp_path / "rail.safetensors"))


@pytest.mark.parametrize("variant", ["gift", "zscl", "lwf"])
def test_the_golden_weights_are_arrived_at_with_every_product_by_onednn_too(fixture, variant, monkeypatch):
    monkeypatch.setattr("gift_train.clip.linear.favours_onednn", lambda: True)
    monkeypatch.setattr("gift_train.clip.linear.FEWEST_PRODUCTS", 0)
    result = _check_variant(fixture, variant)
    assert result.weight_difference <= ON_CPU.weight
    assert result.loss_difference <= 2 * ON_CPU.loss  # a golden loss of 16 is known to 1e-6 of itself, and these products round otherwise


def test_every_variant_of_the_fixtures_is_built(fixtures):
    assert set(fixtures) == set(VARIANTS)


def test_a_fixture_whose_inputs_are_gone_is_told(tmp_path):
    for name in ("snd.json", "snd.safetensors"):
        shutil.copy(AFTER_GIFT / name, tmp_path / name)
    with pytest.raises(DataError, match=r"parity/fixture.safetensors is not a readable fixture"):
        Fixture(tmp_path / "snd.safetensors")


def test_a_wrong_number_is_noticed(copied):
    def nudge(tensors):
        tensors["final_probe/finetune"] += 1e-5

    change_tensors(copied, nudge)
    numbers = json.loads((copied / "fixture.json").read_text())
    numbers["variants"] = {"finetune": numbers["variants"]["finetune"]}
    (copied / "fixture.json").write_text(json.dumps(numbers))
    (result,) = check_fixture(copied)
    assert not result.agrees


def test_a_variant_nobody_built_does_not_agree(copied):
    numbers = json.loads((copied / "fixture.json").read_text())
    numbers["variants"] = {"gift_tomorrow": {"losses": []}}
    (copied / "fixture.json").write_text(json.dumps(numbers))
    (result,) = check_fixture(copied)
    assert not result.agrees
    assert result.note == "not built"


def test_folder_without_a_fixture_is_told(tmp_path):
    with pytest.raises(DataError, match=r"fixture\.safetensors is missing"):
        next(check_fixture(tmp_path))


def test_file_of_another_kind_is_told(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"neither a folder with fixture.safetensors nor a .safetensors file"):
        next(check_fixture(tmp_path / "weights.bin"))


def test_truncated_fixture_is_told(copied):
    file = copied / "fixture.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a readable fixture"):
        next(check_fixture(copied))


@pytest.mark.parametrize("missing", ["task_images", "class_tokens", "synthetic_captions"])
def test_missing_tensor_is_named(copied, missing):
    change_tensors(copied, lambda tensors: tensors.pop(missing))
    with pytest.raises(DataError, match=f"no tensor '{missing}'"):
        next(check_fixture(copied))


def test_weights_of_another_architecture_are_told(copied):
    change_tensors(copied, lambda tensors: tensors.pop("previous/visual.conv1.weight"))
    with pytest.raises(DataError, match=r"fixture\.safetensors.*not a CLIP of the OpenAI form"):
        next(check_fixture(copied))


@pytest.mark.parametrize("key", ["optimizer", "variants", "stride"])
def test_missing_number_is_told(copied, key):
    numbers = json.loads((copied / "fixture.json").read_text())
    del numbers[key]
    (copied / "fixture.json").write_text(json.dumps(numbers))
    with pytest.raises(DataError, match=f"lacks or garbles a number.*{key}"):
        next(check_fixture(copied))
