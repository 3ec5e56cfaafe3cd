"""Folders of transformers' CLIPModel, saved by transformers itself: the same tokens and the same features."""

import contextlib
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from gift_shared.errors import ConfigError
from gift_train.clip import transformers_folder
from gift_train.clip.description import describe
from gift_train.clip.load import load_backbone
from gift_train.clip.model_config import difference

TEXTS = ["a photo of a red square.", "a cat", "", "IT'S a  naïve\tdog, 12 of them", "long " * 40]
LETTERS = [chr(number) for number in range(33, 127)]
WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "ph", "at</w>", "c", "Ã", "¯", "¯</w>"]
VOCABULARY = {word: number for number, word in enumerate([*dict.fromkeys(WORDS), "<|startoftext|>", "<|endoftext|>"])}
END = len(VOCABULARY) - 1


def model_of(hidden_act, **text):
    torch.manual_seed(0)
    text = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 24, "bos_token_id": END - 1, "eos_token_id": END, "pad_token_id": END, "hidden_act": hidden_act,
    } | text  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
        "hidden_act": hidden_act,
    }  # fmt: skip
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised activations are next to nothing
            parameter += 0.3 * torch.randn_like(parameter) * (parameter.ndim > 0)
    return model


def save(model, folder, **saving):
    model.save_pretrained(folder, **saving)
    transformers.CLIPTokenizer(vocab=VOCABULARY, merges=[("p", "h"), ("a", "t</w>")]).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, image_std=[0.3] * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(model, its folder)."""
    model = model_of("quick_gelu")
    return model, save(model, tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved[1], tmp_path / "model")


def assert_same_features(backbone, model, folder):
    images = torch.linspace(-2, 2, 3 * 3 * 32 * 32).reshape(3, 3, 32, 32).sin()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    told = tokenizer(TEXTS, truncation=True, max_length=24, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=images).pooler_output, model.get_text_features(**told).pooler_output
        ours = backbone.encode_images(images), backbone.encode_texts(backbone.trim(backbone.tokenize(TEXTS)))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, F.normalize(other, dim=-1), atol=2e-6)
    assert float(backbone.scale) == pytest.approx(float(model.logit_scale.detach().exp()))


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_features_are_those_of_transformers(tmp_path, hidden_act):
    model = model_of(hidden_act)
    folder = save(model, tmp_path / "model")
    backbone = load_backbone(str(folder), None)
    assert_same_features(backbone, model, folder)
    assert backbone.config["model_cfg"]["quick_gelu"] is (hidden_act == "quick_gelu")
    other = load_backbone(str(save(model_of("gelu" if hidden_act == "quick_gelu" else "quick_gelu"), tmp_path / "other")), None)
    with pytest.raises(AssertionError):
        assert_same_features(other, model, folder)


def test_tokens_are_those_of_transformers_for_all_texts_up_to_their_end(saved):
    tokenizer, backbone = transformers.AutoTokenizer.from_pretrained(saved[1]), load_backbone(str(saved[1]), None)
    for text, row in zip(TEXTS, backbone.tokenize(TEXTS).tolist(), strict=True):
        ids = tokenizer(text, truncation=True, max_length=24)["input_ids"]
        assert row == ids + [0] * (24 - len(ids))
    assert backbone.too_long(TEXTS) == [text for text in TEXTS if len(tokenizer(text)["input_ids"]) > 24] == TEXTS[-2:]


def test_an_end_that_is_not_the_largest_id_is_read_where_transformers_reads_it(tmp_path):
    model = model_of("gelu", vocab_size=len(VOCABULARY) + 3)
    folder = save(model, tmp_path / "model")
    backbone = load_backbone(str(folder), None)
    assert backbone.config["model_cfg"]["text_cfg"]["pool_type"] == "eos"
    assert_same_features(backbone, model, folder)


def test_other_epsilons_and_texts_of_old_configurations_are_kept(tmp_path):
    model = model_of("quick_gelu", layer_norm_eps=0.01, eos_token_id=2)
    folder = save(model, tmp_path / "model")
    backbone = load_backbone(str(folder), None)
    assert "pool_type" not in backbone.config["model_cfg"]["text_cfg"]
    assert_same_features(backbone, model, folder)


OF_2021 = {
    "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 512, "text_config_dict": None, "vision_config_dict": None,
    "text_config": {
        "model_type": "clip_text_model", "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "hidden_act": "quick_gelu", "num_beams": 1, "top_k": 50, "dropout": 0.0,
        "torch_dtype": None, "pruned_heads": {}, "use_bfloat16": False, "id2label": {"0": "LABEL_0"}, "max_position_embeddings": 77,
    },
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
        "num_hidden_layers": 12, "patch_size": 16, "torchscript": False,
    },
}  # fmt: skip
PICTURES_OF_2021 = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224,
}  # fmt: skip


def test_the_published_configurations_of_openai_are_open_clips_own(tmp_path):
    """As they were written in 2021, and with the later form's values in a second place, which count."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PICTURES_OF_2021))
    (tmp_path / "config.json").write_text(json.dumps(OF_2021))
    found = transformers_folder.read_config(tmp_path, with_weights=False)
    assert difference(found, describe("ViT-B-16", "openai").config, ("found", "ViT-B-16")) is None
    later = {"text_config_dict": {"hidden_act": "gelu"}, "vision_config_dict": {"hidden_act": "gelu", "hidden_size": 1664}}
    later["vision_config_dict"] |= {"intermediate_size": 8192, "num_attention_heads": 16, "patch_size": 14}
    (tmp_path / "config.json").write_text(json.dumps(OF_2021 | later))
    model_cfg = transformers_folder.read_config(tmp_path, with_weights=False)["model_cfg"]
    assert model_cfg["quick_gelu"] is False
    assert model_cfg["vision_cfg"]["head_width"] == 104
    assert int(1664 * model_cfg["vision_cfg"]["mlp_ratio"]) == 8192


@pytest.mark.parametrize("form", ["shards", "pickle", "halves"])
def test_weights_in_shards_in_a_pickle_and_of_16_bits_are_read(saved, tmp_path, form):
    model, folder = saved[0], shutil.copytree(saved[1], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    if form == "shards":
        model.save_pretrained(folder, max_shard_size="60KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif form == "pickle":
        positions = {"text_model.embeddings.position_ids": torch.arange(24)[None]}  # older versions saved them
        torch.save(model.state_dict() | positions, folder / "pytorch_model.bin")
    else:
        model = model_of("quick_gelu").half()
        model.save_pretrained(folder)
        model = model.float()
    backbone = load_backbone(str(folder), None)
    assert_same_features(backbone, model, folder)
    assert {parameter.dtype for parameter in backbone.parameters().values()} == {torch.float32}


def test_pictures_are_made_as_the_folder_says(saved):
    config = load_backbone(str(saved[1]), None).config["preprocess_cfg"]
    assert config["std"] == [0.3] * 3
    assert config["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert (config["resize_mode"], config["interpolation"], config["size"]) == ("shortest", "bicubic", [32, 32])


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"resample": 2}, {"interpolation": "bilinear"}),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, {"resize_mode": "squash"}),
        ({"size": 32, "crop_size": 32, "do_convert_rgb": None, "feature_extractor_type": "CLIPFeatureExtractor"}, {}),  # of 2021
        ({"do_normalize": False}, {"mean": [0.0] * 3, "std": [1.0] * 3}),
    ],
)
def test_ways_of_making_pictures_that_are_understood(folder, told, expected):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    config = transformers_folder.read_config(folder)["preprocess_cfg"]
    assert config | expected == config


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"resample": 0}, "resample is 0"),
        ({"size": {"shortest_edge": 36}}, "size is .*36.* where the model reads 32 pixels"),
        ({"crop_size": 28}, "crop_size is 28 where the model reads 32"),
        ({"do_center_crop": False}, "without a crop"),
        ({"do_rescale": False}, "do_resize or do_rescale is off"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is"),
        ({"do_pad": True}, "the key 'do_pad'"),
        ({"image_processor_type": "ViTImageProcessor"}, "pictures are made by 'ViTImageProcessor'"),
        ({"image_mean": [0.5]}, "mean must be three numbers"),
    ],
)
def test_ways_of_making_pictures_that_are_not_understood_are_refused(folder, told, message):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    with pytest.raises(ConfigError, match=message):
        transformers_folder.read_config(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "model_type 'siglip'; of transformers' models a CLIPModel can be read"),
        ({"architectures": ["CLIPVisionModelWithProjection"]}, "describes CLIPVisionModelWithProjection"),
        ({"text_config": {"hidden_act": "gelu"}}, "activated by gelu and quick_gelu"),
        ({"text_config": {"hidden_act": "relu"}, "vision_config": {"hidden_act": "relu"}}, "activated by relu"),
        ({"vision_config": {"num_channels": 4}}, "4 channels"),
        ({"text_config": {"eos_token_id": [1, 2]}}, r"texts end with \[1, 2\]"),
        ({"text_config": {"vocab_size": 2**40}}, "text_config.vocab_size must be a whole number above 0"),
        ({"text_config": {"vocab_size": 2**30}}, "describes a model of .* numbers or more"),
        ({"vision_config": {"image_size": "all"}}, "config.json"),
    ],
)
def test_models_that_open_clip_cannot_run_alike_are_refused(folder, change, message):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        load_backbone(str(folder), None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("preprocessor_config.json", "has no preprocessor_config.json, which says how its pictures are made"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
        ("config.json", "has no open_clip_config.json"),
    ],
)
def test_a_folder_without_a_part_is_told(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=message):
        load_backbone(str(folder), None)


def test_weights_of_something_else_are_told(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"classifier.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"holds no CLIPModel: 'classifier\.weight' is no name of its weights"):
        load_backbone(str(folder), None)
    del weights["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"layers\.1\.self_attn\.q_proj\.bias'|layers\.1\.self_attn\.v_proj\.bias'"):
        load_backbone(str(folder), None)
    with pytest.raises(ConfigError, match="has the names of transformers' CLIPModel: give its folder"):
        load_backbone("ViT-S-32-alt", str(folder / "model.safetensors"), quick_gelu=True)


def test_a_tokenizer_that_ends_texts_elsewhere_is_refused(folder):
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    told["post_processor"] = None
    path.write_text(json.dumps(told))
    about = folder / "tokenizer_config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ConfigError, match="does not end a text where its model reads it"):
        load_backbone(str(folder), None)


def test_a_tokenizer_with_code_is_refused_and_the_code_not_run(folder):
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text()) | {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    path.write_text(json.dumps(told))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    with contextlib.suppress(ConfigError):  # or by the class that a CLIP's is
        load_backbone(str(folder), None)
    assert not (folder / "ran").exists()
