"""A model folder is looked at before anything is loaded: what is missing or unsafe is named in one line."""

import json
from pathlib import Path

import pytest

from gift_generate.rendering.model_folder import check_model_folder, fingerprint
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


def test_a_whole_folder_passes(model: Path) -> None:
    check_model_folder(model)


def test_a_missing_component_is_named(model: Path) -> None:
    for path in (model / "vae").iterdir():
        path.unlink()
    (model / "vae").rmdir()
    with pytest.raises(ConfigError, match=r"lacks the component vae, which its model_index.json lists. Copy the folder vae/ there."):
        check_model_folder(model)


def test_a_component_that_the_index_does_not_list_is_named(model: Path) -> None:
    change_index(model, unet=[None, None])
    with pytest.raises(ConfigError, match="lists no unet"):
        check_model_folder(model)


def test_pickled_weights_are_refused(model: Path) -> None:
    (model / "unet" / "model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"must hold .safetensors weights; found diffusion_pytorch_model.bin: pickled weights"):
        check_model_folder(model)


def test_code_that_ships_with_a_model_is_refused(model: Path) -> None:
    change_index(model, unet=["my_unet", "MyUNet"])
    with pytest.raises(ConfigError, match="component unet comes from 'my_unet'; code that ships with a model is never run"):
        check_model_folder(model)


def test_another_pipeline_is_refused(model: Path) -> None:
    change_index(model, _class_name="FluxPipeline")
    with pytest.raises(ConfigError, match="describes a FluxPipeline; expected a StableDiffusionPipeline"):
        check_model_folder(model)


@pytest.mark.parametrize(("content", "message"), [("{", "is not a JSON object"), ("[]", "is not a JSON object")])
def test_a_broken_index_is_told(model: Path, content: str, message: str) -> None:
    (model / "model_index.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        check_model_folder(model)


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no model_index.json, so it is no model folder in diffusers format"):
        check_model_folder(tmp_path)


def test_the_fingerprint_follows_the_weights_and_not_the_place(model: Path, tmp_path: Path) -> None:
    before = fingerprint(model)
    moved = model.rename(tmp_path / "elsewhere")
    assert fingerprint(moved) == before
    (moved / "unet" / "model.fp16.safetensors").write_bytes(b"not loaded")
    assert fingerprint(moved) == before
    (moved / "unet" / "model.safetensors").write_bytes(b"tuned")
    assert fingerprint(moved) != before
