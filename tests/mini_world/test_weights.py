"""The shipped weights load through the public interfaces, fit the size promised, and speak one vocabulary."""

import json
import tomllib
from importlib.resources import files

import pytest
import torch

from gift_mini.locations import clip_folder, stable_diffusion_folder
from gift_mini.stamps import CLASSES


@pytest.fixture(scope="module")
def clip_config():
    return json.loads((clip_folder() / "open_clip_config.json").read_text())["model_cfg"]


@pytest.fixture(scope="module")
def open_clip_tokenizer(clip_config):
    from open_clip.tokenizer import SimpleTokenizer

    text = clip_config["text_cfg"]
    return SimpleTokenizer(str(clip_folder() / text["tokenizer_kwargs"]["bpe_path"]), context_length=text["context_length"])


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(stable_diffusion_folder(), torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def captions():
    for task, names in CLASSES.items():
        manifest = tomllib.loads((files("gift_manifests") / "tasks" / f"{task}.toml").read_text(encoding="utf-8"))
        yield from (template.format(name) for template in manifest["templates"] for name in names)
    yield from (files("gift_manifests") / "captions" / "mini_web.txt").read_text(encoding="utf-8").splitlines()


def test_all_weights_together_stay_below_20_megabytes():
    weights = clip_folder().parent
    assert sum(file.stat().st_size for file in weights.rglob("*") if file.is_file()) <= 20e6


def test_clip_loads_and_encodes(clip_config, open_clip_tokenizer):
    from open_clip.model import CLIP
    from safetensors.torch import load_file

    state = load_file(clip_folder() / "open_clip_model.safetensors")
    clip = CLIP(**clip_config)
    clip.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    features = clip.encode_text(open_clip_tokenizer(["the letter A.", "a picture of a heart."]), normalize=True)
    assert features.shape == (2, 128)
    assert clip.logit_scale.exp() <= 100.01
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_open_clip_and_transformers_give_the_same_token_ids(open_clip_tokenizer, pipeline):
    """Up to padding: open_clip pads with 0, transformers with the end token."""
    texts = list(captions())
    assert len(texts) > 500
    length = pipeline.tokenizer.model_max_length
    assert length == open_clip_tokenizer.context_length
    theirs = pipeline.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
    ours = open_clip_tokenizer(texts)
    end = open_clip_tokenizer.eot_token_id
    padding = (ours == end).int().cumsum(1) - (ours == end).int() > 0
    assert torch.equal(ours.masked_fill(padding, end), theirs)


def test_the_end_token_has_the_highest_id(open_clip_tokenizer, pipeline):
    assert open_clip_tokenizer.eot_token_id == open_clip_tokenizer.vocab_size - 1
    assert pipeline.tokenizer.eos_token_id == pipeline.text_encoder.config.eos_token_id == len(pipeline.tokenizer) - 1


def test_no_caption_of_the_mini_world_is_truncated(open_clip_tokenizer):
    longest = max(captions(), key=lambda text: len(open_clip_tokenizer.encode(text)))
    assert len(open_clip_tokenizer.encode(longest)) + 2 <= open_clip_tokenizer.context_length, longest


def test_words_are_split_as_the_full_vocabulary_splits_them(open_clip_tokenizer):
    from open_clip.tokenizer import SimpleTokenizer

    full = SimpleTokenizer()
    for text in captions():
        pieces = [open_clip_tokenizer.decoder[token] for token in open_clip_tokenizer.encode(text)]
        assert pieces == [full.decoder[token] for token in full.encode(text)]


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_the_pipeline_paints(pipeline, scheduler):
    import diffusers

    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    pictures = pipeline(
        ["the letter A.", "the flag of Japan."], num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    assert pictures.shape == (2, 3, 32, 32)
    assert pictures.isfinite().all()
    assert pictures.std() > 0.02
