"""Every kind of text tower that open_clip describes, small, with random weights: what is cut, read and trained, and what is told."""

import copy
import json
import sys

import open_clip
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from open_clip.tokenizer import HFTokenizer

from gift_shared.errors import ConfigError
from gift_train.clip.load import load_backbone
from gift_train.clip.model import FROZEN, Backbone
from gift_train.clip.model_config import build
from gift_train.clip.tokenizers import load_tokenizer, num_tokens

WORDS, LONGEST = 6, 9  # of the texts below: words, and tokens with start and end
VISION = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
SMALL = {"vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
HUGGING_FACE = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "pad_token_id": 0}
HALF = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
M2M = {"vocab_size": 100, "d_model": 32, "pad_token_id": 1, "max_position_embeddings": 90}
M2M |= {f"{half}_{size}": value for half in ("encoder", "decoder") for size, value in HALF.items()}
TOWERS = {
    "xlm-roberta-base-ViT-B-32": lambda: transformers.XLMRobertaConfig(**HUGGING_FACE, max_position_embeddings=514, pad_token_id=1),
    "roberta-ViT-B-32": lambda: transformers.RobertaConfig(**HUGGING_FACE, max_position_embeddings=514, pad_token_id=1),
    "mt5-base-ViT-B-32": lambda: transformers.MT5Config(**T5),
    "nllb-clip-base-siglip": lambda: transformers.M2M100Config(**M2M),
}
# By open_clip's name: padding, and whether columns of nothing else are cut.
FAMILIES = {
    "ViT-B-16": (0, True),
    "ViT-H-14-worldwide": (1, True),  # MetaCLIP 2: read at the end token by its id
    "EVA02-B-16": (0, True),  # a text tower beside the image tower, as of PE-Core and ViTamin
    "PE-Core-B-16": (0, True),
    "ViT-L-14-CLIPA": (0, False),  # no mask, read at the last position
    "MobileCLIP2-S0": (0, False),  # no mask, read at the end token, and all positions matter to it
    "ViT-B-16-SigLIP": (1, False),
    "coca_ViT-B-32": (0, False),  # a class token behind the padding
    **{name: (0 if name.startswith("mt5") else 1, True) for name in TOWERS},
}


def small(name, folder):
    """The family's network, small: its own text tower and the least image tower; every weight random, none 0."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    config["embed_dim"] = 32
    pooling = ("attentional_pool", "output_tokens")
    config["vision_cfg"] = VISION | {key: config["vision_cfg"][key] for key in pooling if key in config["vision_cfg"]}
    config["vision_cfg"] |= {"attn_pooler_heads": 2}
    if name in TOWERS:
        TOWERS[name]().save_pretrained(folder)
        config["text_cfg"]["hf_model_name"] = str(folder)
    else:
        config["text_cfg"] |= SMALL
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= SMALL | {"attn_pooler_heads": 2}
    torch.manual_seed(0)
    network = build({"model_cfg": config})
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def texts(padding, length):
    """Token rows that begin, end and are padded: 98, words, the end. MetaCLIP 2's end is 2; where the largest id ends a text it is 99."""
    rows = torch.full((3, length), padding)
    for row, num_words in zip(rows, (3, WORDS + 1, WORDS), strict=True):
        row[: num_words + 2] = torch.tensor([98, *range(10, 10 + num_words), 2 if padding == 1 else 99])
    return rows


def gradients(network, features):
    network.zero_grad()
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_texts_give_open_clips_own_features_and_gradients(name, tmp_path):
    padding, cuts = FAMILIES[name]
    network = small(name, tmp_path)
    backbone = Backbone(network, None)
    length = open_clip.get_model_config(name)["text_cfg"].get("context_length", 77)
    tokens = texts(padding, length)
    trimmed = backbone.trim(tokens)
    assert trimmed.shape[1] == (LONGEST if cuts else length)
    plain = F.normalize(network.encode_text(tokens), dim=-1)
    ours = backbone.encode_texts(trimmed)
    assert torch.allclose(ours, plain, atol=2e-6)
    ours_gradients, plain_gradients = gradients(network, backbone.encode_texts(trimmed)), gradients(network, plain)
    for parameter, gradient in plain_gradients.items():
        assert (ours_gradients[parameter] - gradient).abs().max() <= 2e-5 * gradient.abs().max() + 1e-7, parameter
    assert backbone.vocabulary_size == 100


@pytest.mark.parametrize("name", FAMILIES)
def test_what_trains_is_what_the_features_are_made_of(name, tmp_path):
    backbone = Backbone(small(name, tmp_path), None)
    features = backbone.encode_images(torch.randn(2, 3, 16, 16)), backbone.encode_texts(texts(FAMILIES[name][0], 32))
    if name in ("ViT-L-14-CLIPA", "coca_ViT-B-32", "ViT-B-16-SigLIP", "MobileCLIP2-S0"):  # which insist on their own length
        features = features[0], backbone.encode_texts(texts(FAMILIES[name][0], backbone.context_length))
    (features[0] @ features[1].T).sum().backward()
    assert {name for name, parameter in backbone.parameters().items() if parameter.grad is None} == set()
    left_out = {name for name, _ in backbone.network.named_parameters()} - backbone.parameters().keys()
    assert {name for name in left_out if not name.startswith("text_decoder.")} <= set(FROZEN)
    assert ("text_decoder.text_projection" in left_out) == name.startswith("coca")


def hugging_face(folder, template="[CLS] $A [SEP]", **saved):
    """A tokenizer of Hugging Face's around single letters, as a folder holds it."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    words = tokenizers.models.WordLevel({word: number for number, word in enumerate([*special, "a", "b"])}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    numbered = [(word, special.index(word)) for word in template.split() if word != "$A"]
    made.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=numbered)
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names, **saved).save_pretrained(folder)


@pytest.mark.parametrize(
    ("template", "options", "num_special"),
    [("[CLS] $A [SEP]", {}, 2), ("$A [SEP]", {}, 1), ("$A", {}, 0), ("$A", {"tokenizer_mode": "clips"}, 3)],
    ids=["BERT", "T5 and SigLIP", "words alone", "CLIPS"],
)
def test_a_text_is_too_long_when_its_tokenizer_cuts_it(tmp_path, template, options, num_special):
    hugging_face(tmp_path, template, model_max_length=5)
    tokenizer = HFTokenizer(str(tmp_path), context_length=10, clean="whitespace", **options)
    fits, cut = ("a " * (10 - num_special)).strip(), ("a " * (11 - num_special)).strip()
    assert num_tokens(tokenizer, [fits, cut, ""]) == [10, 11, num_special]
    backbone = Backbone(small("ViT-B-16", tmp_path), tokenizer)
    assert backbone.context_length == 10  # the tokenizer's, though the tower has room for 77
    assert backbone.tokenize([fits]).shape == (1, 10)
    assert backbone.too_long([fits, cut, cut]) == [cut]


def test_open_clips_own_tokenizer_counts_start_and_end():
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    assert num_tokens(tokenizer, ["a photo of a cat.", ""]) == [8, 2]


def folder_of(path, files):
    """A model folder that names a tokenizer beside it, of these files."""
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": SMALL | {"hf_tokenizer_name": "beside", "context_length": 10}}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    for name, content in files.items():
        (path / name).write_text(content)
    return f"local-dir:{path}"


OF_XLM_R = {"tokenizer_config.json": '{"tokenizer_class": "XLMRobertaTokenizer"}'}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"The folder holds no vocabulary \(tokenizer.json, "),
        ({"tokenizer.json": "nonsense"}, "Copy the folder again, its tokenizer's files with it"),
        ({"tokenizer.json": "{}"}, "Copy the folder again, its tokenizer's files with it"),
        (OF_XLM_R, "knows no words: its vocabulary is missing"),
    ],
    ids=["nothing", "no JSON", "no tokenizer", "settings alone"],
)
def test_a_folder_without_a_whole_tokenizer_is_told_in_one_line(tmp_path, files, message):
    with pytest.raises(ConfigError, match=message) as refused:
        load_tokenizer(folder_of(tmp_path, files))
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_tokenizer_whose_package_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    name = folder_of(tmp_path, {"spiece.model": "vocabulary", "tokenizer_config.json": '{"tokenizer_class": "T5Tokenizer"}'})
    with pytest.raises(ConfigError, match=r"needs what is not installed here: pip install .*sentencepiece") as refused:
        load_tokenizer(name)
    assert "\n" not in str(refused.value)


def test_transformers_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    hugging_face_files = {"tokenizer.json": "{}"}
    with pytest.raises(ConfigError, match=r"pip install .*transformers"):
        load_tokenizer(folder_of(tmp_path, hugging_face_files))


def test_a_tokenizer_on_a_hub_out_of_reach_says_what_to_bring(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"The tokenizer of ViT-B-16-SigLIP .* `hf download timm/ViT-B-16-SigLIP`") as refused:
        load_tokenizer("ViT-B-16-SigLIP")
    assert "\n" not in str(refused.value)


def test_adapters_hang_on_blocks_that_features_pass(tmp_path):
    backbone = Backbone(small("coca_ViT-B-32", tmp_path), None)
    assert list(backbone.residual_blocks()) == ["text.transformer.0", "text.transformer.1", "visual.transformer.0"]
    reached = {name for name, parameter in backbone.parameters().items() if parameter.requires_grad}
    assert reached == set(backbone.parameters())


def test_a_tower_without_such_blocks_is_named(tmp_path):
    with pytest.raises(ConfigError, match="this model's text tower, HFTextEncoder, has none"):
        Backbone(small("roberta-ViT-B-32", tmp_path), None).residual_blocks()
    resnet = open_clip.CLIP(32, VISION | {"layers": [1, 1, 1, 1], "width": 16, "image_size": 32}, SMALL)
    with pytest.raises(ConfigError, match="this model's image tower, ModifiedResNet, has none"):
        Backbone(resnet, None).residual_blocks()


def test_what_writes_captions_keeps_its_weights_and_comes_with_a_checkpoint(tmp_path):
    backbone = Backbone(small("coca_ViT-B-32", tmp_path), None)
    decoder = backbone.network.text_decoder.text_projection
    assert not decoder.requires_grad
    whole = {name: weight + 1 for name, weight in backbone.network.state_dict().items()}
    before = decoder.clone()
    backbone.load_weights(backbone.weights_copy())  # anchors and averages are without it
    assert decoder.equal(before)
    backbone.load_weights(whole)
    assert decoder.equal(before + 1)


def test_a_text_tower_on_a_hub_out_of_reach_says_what_to_bring(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"Model roberta-ViT-B-32 has a text tower .* `hf download roberta-base config.json`") as refused:
        load_backbone("roberta-ViT-B-32", "random")
    assert "\n" not in str(refused.value)
