"""A model folder is looked at before anything is loaded: what is missing or unsafe is named in one line."""

import json
from pathlib import Path

import pytest

from gift_generate.rendering.loading import judge
from gift_generate.rendering.model_folder import check_model_folder, fingerprint, loaded_weights, only_variant, read_index
from gift_shared.errors import ConfigError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The outside of a Stable Diffusion folder."""
    folder = tmp_path / "model"
    components = {
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
    }
    for name, (library, _) in components.items():
        if library:
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text("{}")
    for name in ("text_encoder", "unet", "vae"):
        (folder / name / "model.safetensors").write_bytes(name.encode())
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"} | components))
    return folder


def change_index(model: Path, **entries: object) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | entries))


def check(model: Path, variant: str | None = None) -> None:
    index = read_index(model / "model_index.json")
    judge(index)
    check_model_folder(model, index, variant)


def digest(model: Path, variant: str | None = None) -> str:
    return fingerprint(model, read_index(model / "model_index.json"), variant)


def test_a_whole_folder_passes(model: Path) -> None:
    check(model)


def test_a_missing_component_is_named(model: Path) -> None:
    for path in (model / "vae").iterdir():
        path.unlink()
    (model / "vae").rmdir()
    with pytest.raises(ConfigError, match=r"lacks the component vae, which its model_index.json lists. Copy the folder vae/ there."):
        check(model)


def test_a_component_that_the_index_does_not_list_is_named(model: Path) -> None:
    change_index(model, unet=[None, None])
    with pytest.raises(ConfigError, match="lists no unet, which a StableDiffusionPipeline needs"):
        check(model)


def test_pickled_weights_are_refused(model: Path) -> None:
    (model / "unet" / "model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"must hold .safetensors weights; found diffusion_pytorch_model.bin: pickled weights"):
        check(model)


def test_code_that_ships_with_a_model_is_refused(model: Path) -> None:
    change_index(model, unet=["my_unet", "MyUNet"])
    with pytest.raises(ConfigError, match="component unet comes from 'my_unet'; code that ships with a model is never run"):
        check(model)


def test_code_beside_a_components_weights_is_refused(model: Path) -> None:
    """diffusers would run it as the library that the component is of."""
    (model / "unet" / "diffusers.py").write_text("raise SystemExit")
    with pytest.raises(ConfigError, match=r"unet/diffusers.py would be loaded; code that ships with a model is never run"):
        check(model)


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        ("NoSuchPipeline", "has no pipeline NoSuchPipeline; a newer diffusers may have it"),
        ("StableDiffusionInpaintPipeline", "makes no images of texts alone: it begins with an image"),
        ("DDPMPipeline", "makes no images of texts alone: its call knows no prompt"),
        ("FluxPipeline", "lists no text_encoder_2, which a FluxPipeline needs"),
        (["pipeline", "MyPipeline"], "names no pipeline class of diffusers .* code that ships with a model is never run"),
    ],
)
def test_a_pipeline_that_cannot_be_used_is_refused(model: Path, class_name: object, message: str) -> None:
    change_index(model, _class_name=class_name)
    with pytest.raises(ConfigError, match=message):
        check(model)


@pytest.mark.parametrize(("content", "message"), [("{", "is not a JSON object"), ("[]", "is not a JSON object")])
def test_a_broken_index_is_told(model: Path, content: str, message: str) -> None:
    (model / "model_index.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        check(model)


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no model_index.json, so it is no model folder in diffusers format"):
        check(tmp_path)


def test_the_fingerprint_follows_the_weights_and_not_the_place(model: Path, tmp_path: Path) -> None:
    before = digest(model)
    moved = model.rename(tmp_path / "elsewhere")
    assert digest(moved) == before
    (moved / "unet" / "model.fp16.safetensors").write_bytes(b"not loaded")
    assert digest(moved) == before
    (moved / "unet" / "model.safetensors").write_bytes(b"tuned")
    assert digest(moved) != before


def test_the_digest_of_a_variant_is_of_what_is_loaded(model: Path) -> None:
    (model / "unet" / "model.bf16.safetensors").write_bytes(b"half")
    before = digest(model, "bf16")
    (model / "unet" / "model.safetensors").write_bytes(b"not loaded")
    assert digest(model, "bf16") == before
    (model / "vae" / "model.safetensors").write_bytes(b"loaded: it has no such variant")
    assert digest(model, "bf16") != before


@pytest.mark.parametrize(
    ("names", "variant", "loaded"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], "fp16", ["model.fp16.safetensors"]),
        (["model.safetensors"], "fp16", ["model.safetensors"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None, 2),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors", "model.safetensors"], "fp16", 2),
        (["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors", "model.safetensors"], "fp16", 2),
    ],
)
def test_weights_of_a_variant_are_taken_where_there_are_some(names: list[str], variant: str | None, loaded: list[str] | int) -> None:
    found = loaded_weights([*names, "config.json"], variant, "there")
    assert found == loaded if isinstance(loaded, list) else found == names[:loaded]


def test_a_variant_that_is_all_there_is_needs_no_name_and_two_of_them_do(model: Path) -> None:
    index = read_index(model / "model_index.json")
    names = {name: ["model.safetensors"] for name in index.components} | {"unet": ["model.fp16.safetensors"]}
    assert only_variant(index, names) == "fp16"
    names["unet"] = ["model.fp16.safetensors", "model.bf16.safetensors"]
    assert only_variant(index, names) is None
    with pytest.raises(ConfigError, match="holds its weights as variant bf16, fp16 alone: give --variant"):
        loaded_weights(names["unet"], None, "unet")


def test_a_part_of_split_weights_that_is_missing_is_named(model: Path) -> None:
    (model / "unet" / "model.safetensors").rename(model / "unet" / "model-00001-of-00002.safetensors")
    parts = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "unet" / "model.safetensors.index.json").write_text(json.dumps(parts))
    with pytest.raises(ConfigError, match=r"unet lacks model-00002-of-00002.safetensors, one of 1 parts"):
        check(model)
