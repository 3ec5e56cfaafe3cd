"""Gradients in null spaces: what the projection keeps and takes away. The rest is held to published numbers (tests/golden/after_gift)."""

import open_clip
import pytest
import torch

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.methods.gnsp import Gnsp, null_space_projection
from gift_train.methods.method_files import is_plain_clip

CONFIG = Gnsp.Config(distill_weight=1.0, temperature=2.0, alignment_weight=0.75, tail_share=0.15)


def test_the_projection_takes_away_all_that_the_inputs_span_and_keeps_the_rest():
    inputs = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) @ torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    projection = null_space_projection(inputs.T @ inputs, tail_share=0.01)
    assert torch.allclose(inputs @ projection, torch.zeros(50, 6), atol=1e-4)
    assert torch.linalg.matrix_rank(projection) == 4
    assert torch.allclose(projection @ projection, projection, atol=1e-5)


def test_the_share_of_the_tail_decides_how_much_is_free():
    gram = torch.diag(torch.tensor([6.0, 2.0, 1.5, 0.5]))  # tails: 10, 4, 2, 0.5 tenths
    assert [int(null_space_projection(gram, share).trace().round()) for share in (0.04, 0.06, 0.21, 0.41)] == [0, 1, 2, 3]


def test_a_tower_without_a_class_token_is_refused_before_weights_are_read():
    resnet = open_clip.CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=20, width=64, heads=1, layers=1)
    with pytest.raises(ConfigError, match="this model's image tower, ModifiedResNet, is none"):
        Gnsp(CONFIG).check_model(Backbone(open_clip.CLIP(16, resnet, text), None))


def test_what_it_hands_on_is_a_plain_clip_that_can_be_exported():
    assert is_plain_clip(Gnsp)
