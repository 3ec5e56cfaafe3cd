"""The configuration a backbone carries: whole, as the network is, and enough to build it again."""

import copy
import json

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU

from gift_train.clip.load import load_backbone
from gift_train.clip.model_config import build, described

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
TEXTS = torch.tensor([[49406, 320, 1125, 49407, *[0] * 8], [49406, 2368, 49407, *[0] * 9]])


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory):
    """Makes `tiny-CLIP` and `tiny-CLIP-quickgelu` names of open_clip."""
    folder = tmp_path_factory.mktemp("configs")
    for name, more in (("tiny-CLIP", {}), ("tiny-CLIP-quickgelu", {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps(TINY | more))
    open_clip.add_model_config(folder)


def same_features(ours, network):
    network.load_state_dict(ours.state_dict())
    with torch.no_grad():
        return torch.equal(ours.encode_image(IMAGES), network.encode_image(IMAGES)) and torch.equal(
            ours.encode_text(TEXTS), network.encode_text(TEXTS)
        )


@pytest.mark.parametrize("name", ["tiny-CLIP", "tiny-CLIP-quickgelu"])
def test_a_named_model_tells_all_that_open_clip_needs_to_build_it(name):
    config = load_backbone(name, "random").config
    quick_gelu = name.endswith("-quickgelu")
    assert config == {
        "model_cfg": TINY | {"quick_gelu": quick_gelu},
        "preprocess_cfg": {
            "size": [16, 16], "mode": "RGB", "mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD),
            "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
        },
    }  # fmt: skip
    assert json.loads(json.dumps(config)) == config
    assert same_features(load_backbone(name, "random").network, open_clip.CLIP(**config["model_cfg"]).eval())


def test_the_mini_model_is_told_and_built_again_from_its_configuration():
    backbone = load_backbone("mini", None)
    assert backbone.config["model_cfg"]["quick_gelu"] is True
    assert backbone.config["preprocess_cfg"]["mean"] == [0.6, 0.55, 0.55]
    assert backbone.frozen_copy().config == backbone.config
    again = build(backbone.config)
    again.load_state_dict(backbone.network.state_dict())
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.encode_image(images), backbone.network.encode_image(images))
    assert again.visual.preprocess_cfg | {"size": [32, 32]} == backbone.config["preprocess_cfg"]


CUSTOM_TEXT = copy.deepcopy(TINY) | {"custom_text": True}
COCA = CUSTOM_TEXT | {
    "multimodal_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    "text_cfg": TINY["text_cfg"] | {"embed_cls": True, "output_tokens": True},
    "vision_cfg": TINY["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
}
TIMM = CUSTOM_TEXT | {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": True, "image_size": 32}}


@pytest.mark.parametrize(
    ("model_cfg", "kind"), [(CUSTOM_TEXT, open_clip.CustomTextCLIP), (COCA, open_clip.CoCa), (TIMM, open_clip.CustomTextCLIP)]
)
def test_a_network_is_built_of_the_class_that_open_clip_would_take_and_fetches_nothing(model_cfg, kind):
    model_cfg = model_cfg | {"quick_gelu": True}
    network = build({"model_cfg": model_cfg})
    assert type(network) is kind
    assert any(isinstance(module, QuickGELU) for module in network.modules())
    config = described(model_cfg, network)
    assert config["model_cfg"]["quick_gelu"] is True
    assert config["model_cfg"]["vision_cfg"].get("timm_model_pretrained", False) is False
    build(config).load_state_dict(network.state_dict())
