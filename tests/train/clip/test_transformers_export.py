"""Folders that open_clip and transformers load by themselves: the same features, tokens and pictures as the model they came from."""

import gzip
import json
import logging

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from gift_shared.errors import ConfigError
from gift_train.clip import transformers_export
from gift_train.clip.forms import write_forms
from gift_train.clip.load import load_backbone
from gift_train.clip.model import Backbone
from gift_train.clip.model_config import build, described

TEXTS = ["a photo of a red square.", "IT'S a naïve\tdog, 12 of them!", "", 'wow!!! what\'s "that"? 東京', "long words " * 40]
VISION = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 24, "vocab_size": 516, "width": 32, "heads": 4, "layers": 2}
MERGES = ["p h", "ph o"]


def changed(**changes):
    """A configuration; `vision_cfg` and `text_cfg` are changed key by key."""
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": dict(VISION), "text_cfg": dict(TEXT)}
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(config.get(name), dict) else value
    return config


def backbone_of(model_cfg, tokenizer, **preprocess_cfg):
    """With random weights, large enough that activations matter."""
    torch.manual_seed(0)
    network = build({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter) * (parameter.ndim > 0)
        network.logit_scale.fill_(3.21)
    return Backbone(network, tokenizer, config=described(model_cfg, network))


@pytest.fixture(scope="module")
def own_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("merges") / "merges.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(["#version", *MERGES]))
    return open_clip.SimpleTokenizer(bpe_path=str(path), context_length=TEXT["context_length"])


def exported(backbone, folder):
    folder.mkdir()
    return write_forms(backbone, folder, "owner/name")


def up_to_end(tokens, end):
    return [row[: row.index(end) + 1] for row in tokens.tolist()]


KINDS = {
    "QuickGELU": {},
    "GELU": {"quick_gelu": False},
    "other epsilons, MLPs and heads": {"vision_cfg": {"norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 2.5, "head_width": 24}},
    "texts read by the id of their end": {"text_cfg": {"pool_type": "eos", "eos_id": 515}},
    "text tower on its own": {"custom_text": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_libraries_compute_the_same_features(tmp_path, own_tokenizer, kind):
    text_cfg = {"tokenizer_kwargs": {"bpe_path": "merges.txt.gz"}} | KINDS[kind].get("text_cfg", {})
    backbone = backbone_of(changed(**KINDS[kind] | {"text_cfg": text_cfg}), own_tokenizer)
    forms = exported(backbone, tmp_path / "model")
    assert forms.why_not_transformers is None
    images = torch.linspace(-2, 2, 3 * 3 * 32 * 32).reshape(3, 3, 32, 32).sin()
    with torch.no_grad():
        ours = backbone.encode_images(images), backbone.encode_texts(backbone.tokenize(TEXTS))
        name = f"local-dir:{tmp_path / 'model'}"
        network, _, _ = open_clip.create_model_and_transforms(name)
        tokens = open_clip.get_tokenizer(name)(TEXTS)
        theirs = network.eval().encode_image(images, normalize=True), network.encode_text(tokens, normalize=True)
        model = transformers.CLIPModel.from_pretrained(tmp_path / "model").eval()
        told = transformers.CLIPProcessor.from_pretrained(tmp_path / "model")(
            text=TEXTS, padding=True, truncation=True, return_tensors="pt"
        )
        features = model.get_image_features(pixel_values=images).pooler_output, model.get_text_features(**told).pooler_output
    for one, other, third in zip(ours, theirs, features, strict=True):
        assert torch.allclose(one, other, atol=2e-6)
        assert torch.allclose(one, F.normalize(third, dim=-1), atol=2e-6)
    assert float(network.logit_scale) == float(model.logit_scale) == pytest.approx(3.21)
    end = own_tokenizer.eot_token_id
    assert up_to_end(tokens, end) == up_to_end(told["input_ids"], end) == up_to_end(backbone.tokenize(TEXTS), end)
    assert (model.config.text_config.eos_token_id, model.config.text_config.pad_token_id) == (end, end)


def test_what_was_exported_loads_here_as_what_it_was(tmp_path, own_tokenizer):
    backbone = backbone_of(changed(text_cfg={"tokenizer_kwargs": {"bpe_path": "merges.txt.gz"}}), own_tokenizer, mean=[0.2] * 3)
    exported(backbone, tmp_path / "model")
    again = load_backbone(str(tmp_path / "model"), None)
    assert again.config["preprocess_cfg"] == backbone.config["preprocess_cfg"]
    assert torch.equal(again.encode_texts(again.tokenize(TEXTS)), backbone.encode_texts(backbone.tokenize(TEXTS)))
    (tmp_path / "model/open_clip_config.json").unlink()
    (tmp_path / "model/open_clip_model.safetensors").unlink()
    as_transformers_has_it = load_backbone(str(tmp_path / "model"), None)
    assert as_transformers_has_it.config["model_cfg"]["quick_gelu"] is True
    assert all(torch.equal(one, backbone.weights()[name]) for name, one in as_transformers_has_it.weights().items())


def test_openais_tokenizer_gives_transformers_the_same_ids(tmp_path):
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    backbone = backbone_of(changed(text_cfg={"vocab_size": 49408, "width": 16}), tokenizer)
    forms = exported(backbone, tmp_path / "model")
    assert "hf_tokenizer_name" not in json.loads((tmp_path / "model/open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert forms.has_tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [
        *TEXTS,
        *(f"a photo of a {name}, a type of thing." for name in ("Pembroke Welsh Corgi", "747-400", "crème brûlée", "E.T.A.-8")),
    ]
    for text in texts:
        ids = theirs(text, truncation=True, max_length=24)["input_ids"]
        assert ids == up_to_end(tokenizer([text]), 49407)[0]
    assert ids[0] == 49406
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {"vocab.json", "merges.txt", "tokenizer.json"}


@pytest.mark.parametrize("preprocess_cfg", [{}, {"interpolation": "bilinear", "std": [0.3] * 3}, {"resize_mode": "squash"}])
def test_pictures_are_made_alike(tmp_path, own_tokenizer, preprocess_cfg):
    exported(backbone_of(changed(), own_tokenizer, **preprocess_cfg), tmp_path / "model")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize((96, 64))
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    ours = preprocess(picture)
    theirs = transformers.CLIPProcessor.from_pretrained(tmp_path / "model").image_processor(picture, return_tensors="pt")["pixel_values"][0]
    by_pillow = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "model")(picture, return_tensors="pt")["pixel_values"][0]
    level = 1 / 255 / min(preprocess_cfg.get("std", [0.26862954, 0.26130258, 0.27577711]))
    assert theirs.shape == ours.shape
    assert float((theirs - ours).abs().max()) < 1.01 * level  # torchvision resizes by other sums than Pillow
    assert torch.allclose(by_pillow, ours, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}}, "its vision tower is a ResNet"),
        ({"vision_cfg": {"pool_type": "avg"}}, "vision_cfg: pool_type is 'avg', which it has no word for"),
        ({"vision_cfg": {"ls_init_value": 0.1}}, "vision_cfg: ls_init_value is 0.1"),
        ({"text_cfg": {"no_causal_mask": True}}, "text_cfg: no_causal_mask is True"),
        ({"text_cfg": {"act_kwargs": {"approximate": "tanh"}}, "quick_gelu": False}, "text_cfg: act_kwargs is"),
        ({"init_logit_bias": -10.0}, "it has a logit bias, as SigLIP does"),
        ({"vision_cfg": {"image_size": [32, 16]}}, "it reads pictures of 32 x 16 pixels, which are not square"),
        (
            {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "image_size": 224}},
            "its vision tower is vit_tiny_patch16_224, of another library",
        ),
    ],
)
def test_what_no_clip_model_is_has_open_clips_form_alone(tmp_path, own_tokenizer, changes, reason):
    backbone = backbone_of(changed(**changes), own_tokenizer)
    forms = exported(backbone, tmp_path / "model")
    assert reason in str(forms.why_not_transformers)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors"}
    network = open_clip.create_model(f"local-dir:{tmp_path / 'model'}")
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in backbone.network.state_dict().items())


def test_pictures_and_tokenizers_that_transformers_lacks_are_told(own_tokenizer):
    longest = backbone_of(changed(), own_tokenizer, resize_mode="longest")
    assert transformers_export.obstacle(longest) == "its pictures are resized by 'longest', which CLIPImageProcessor lacks"
    canonical = open_clip.SimpleTokenizer(context_length=24, clean="canonicalize")
    assert "cleans or shortens texts in a way of its own" in str(transformers_export.obstacle(backbone_of(changed(), canonical)))


def test_a_tokenizer_that_only_a_name_has_is_refused(tmp_path, own_tokenizer):
    with pytest.raises(ConfigError, match="tokenizer is function, which open_clip has for names alone and in no folder"):
        exported(backbone_of(changed(), lambda texts: own_tokenizer(texts)), tmp_path / "model")


def test_weights_of_another_shape_are_refused_and_not_bent(own_tokenizer):
    backbone = backbone_of(changed(), own_tokenizer)
    config = transformers_export.config_of(backbone)
    backbone.network.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"'extra\.bias' is on one side only"):
        transformers_export.weights_of(backbone, config)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("transformers").setLevel(logging.ERROR)
