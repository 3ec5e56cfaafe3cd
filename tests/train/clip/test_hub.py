"""CLIPs from the hub, by its own client against a look-alike: both forms load, no byte too much is fetched, what is wrong is one line."""

import json
import re

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from gift_shared.errors import ConfigError
from gift_train.clip.description import describe
from gift_train.clip.load import load_backbone

SIZES = {"width": 32, "layers": 1, "mlp_ratio": 2.0}
MODEL_CFG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": SIZES | {"image_size": 16, "patch_size": 8, "head_width": 16},
    "text_cfg": SIZES | {"context_length": 24, "heads": 2},
}
BESIDE = ("README.md", "flax_model.msgpack", "tf_model.h5", "pytorch_model.bin", "open_clip_pytorch_model.bin", "training_args.json")
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Folder of the models that the look-alike begins with."""
    import transformers

    root = tmp_path_factory.mktemp("repositories") / "models/our"
    torch.manual_seed(0)
    network = open_clip.CLIP(**MODEL_CFG)
    for name in ("native", "gated", "private", "no-weights"):
        (root / name).mkdir(parents=True)
        (root / name / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": MODEL_CFG, "preprocess_cfg": {"resize_mode": "squash"}})
        )
        if name != "no-weights":
            save_file(network.state_dict(), root / name / "open_clip_model.safetensors")
    words = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 24}
    letters = [f"{chr(number)}{end}" for end in ("", "</w>") for number in range(33, 127)]
    vocabulary = {word: number for number, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    text = words | {"vocab_size": len(vocabulary), "bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    vision = {key: value for key, value in words.items() if key != "max_position_embeddings"} | {"image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(root / "transformers", max_shard_size="40KB")
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(root / "transformers")
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(root / "transformers")
    for name in ("native", "transformers"):
        for other in BESIDE:
            (root / name / other).write_text("{}")
    (root / "nothing").mkdir()
    (root / "nothing/README.md").write_text("no model")
    return root.parent.parent


@pytest.fixture
def hub(hub_site, repositories, monkeypatch, tmp_path):
    """The look-alike with an empty cache."""
    site = hub_site(repositories)
    site.use(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return site


def test_a_repository_in_open_clips_form_loads_as_its_folder_and_no_more_is_fetched(hub, repositories):
    backbone = load_backbone("hf-hub:our/native", None)
    local = load_backbone(str(repositories / "models/our/native"), None)
    with torch.no_grad():
        assert torch.equal(backbone.encode_images(IMAGES), local.encode_images(IMAGES))
    assert backbone.config == local.config
    assert backbone.name == "hf-hub:our/native"
    assert hub.fetched() == {"open_clip_config.json", "open_clip_model.safetensors", "training_args.json"}


def test_a_repository_in_transformers_form_loads_as_its_folder_and_no_more_is_fetched(hub, repositories):
    backbone = load_backbone("hf-hub:our/transformers@main", None)
    local = load_backbone(str(repositories / "models/our/transformers"), None)
    texts = ["a photo of a fox.", "b"]
    with torch.no_grad():
        assert torch.equal(backbone.encode_images(IMAGES), local.encode_images(IMAGES))
        assert torch.equal(backbone.encode_texts(backbone.tokenize(texts)), local.encode_texts(local.tokenize(texts)))
    assert not hub.fetched() & set(BESIDE[:5])
    assert {name for name in hub.fetched() if name.endswith(".safetensors")} == {
        path.name for path in (repositories / "models/our/transformers").glob("*.safetensors")
    }


def test_a_tokenizer_alone_is_had_without_weights(hub):
    assert describe("hf-hub:our/native", None, with_weights=False).config["model_cfg"] == MODEL_CFG
    assert hub.fetched() == {"open_clip_config.json", "training_args.json"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hf-hub:our/misspelt", "is not on the hub for everybody: it is misspelt, or private"),
        ("hf-hub:our/private", "is not on the hub for everybody: it is misspelt, or private"),
        ("hf-hub:our/gated", "is gated: accept its licence on its page of the hub"),
        ("hf-hub:our/native@v9", "has no revision 'v9': give a branch, tag or commit of it as hf-hub:our/native@REVISION"),
        ("hf-hub:our/nothing", "has no open_clip_config.json or config.json, so it is no CLIP"),
        ("hf-hub:our/no-weights", "has no weights: expected open_clip_model.safetensors or model.safetensors"),
        ("hf-hub:native", "is no repository of the hub: expected hf-hub:owner/name"),
        ("our/native", "hf-hub:our/native is a repository of the hub"),
    ],
)
def test_what_is_wrong_is_one_line(hub, model, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as told:
        load_backbone(model, None)
    assert "\n" not in str(told.value)
    assert not any("safetensors" in name for name in hub.fetched())


def test_without_a_network_the_cache_will_do_and_an_empty_one_is_told(hub, monkeypatch):
    online = load_backbone("hf-hub:our/native", None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with torch.no_grad():
        assert torch.equal(load_backbone("hf-hub:our/native", None).encode_images(IMAGES), online.encode_images(IMAGES))
    with pytest.raises(
        ConfigError, match=r"hf-hub:our/transformers is not in the hub's cache of this machine, and the hub cannot be reached"
    ):
        load_backbone("hf-hub:our/transformers", None)


def test_a_cache_that_lacks_the_weights_is_told_without_a_network(hub, monkeypatch, tmp_path):
    load_backbone("hf-hub:our/native", None)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"has no weights called open_clip_model\.safetensors"):
        load_backbone("hf-hub:our/native", None)
