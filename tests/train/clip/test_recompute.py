"""Micro-batches and recomputed blocks give the plain features and gradients on every kind of network, and hold less in memory."""

import runpy
import weakref
from functools import partial
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from torch import nn
from transformers import BertConfig

from gift_shared.errors import ConfigError
from gift_train.clip import recompute, towers
from gift_train.clip.model import Backbone
from gift_train.clip.prefix_tree import LONGEST_ROW, build_prefix_tree, split_tree, texts_in_rows
from gift_train.methods.moe_adapter.adapters import Batch, MixtureSettings, Route, attach_mixtures

LiveBytes = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks/live_bytes.py"))["LiveBytes"]
START, END, LENGTH = 98, 99, 20
TEXT = {"context_length": LENGTH, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}


def clip(vision=(), text=()):
    return open_clip.CLIP(16, open_clip.CLIPVisionCfg(**VIT | dict(vision)), open_clip.CLIPTextCfg(**TEXT | dict(text)), quick_gelu=True)


def with_bert():
    network = open_clip.CustomTextCLIP(16, open_clip.CLIPVisionCfg(**VIT), open_clip.CLIPTextCfg(**TEXT))
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    network.text = HFTextEncoder("", 16, BertConfig(**sizes), pooler_type="mean_pooler", proj_type="linear")
    return network


def with_timm(name, side):
    vision = open_clip.CLIPVisionCfg(image_size=side, timm_model_name=name, timm_pool="avg", timm_proj="linear")
    return open_clip.CustomTextCLIP(16, vision, open_clip.CLIPTextCfg(**TEXT))


NETWORKS = {
    "ViT": clip,
    "ViT, mean of tokens": partial(clip, {"pool_type": "avg"}),
    "layer scale": partial(clip, {"ls_init_value": 0.5}, {"ls_init_value": 0.5}),
    "patch dropout": partial(clip, {"patch_dropout": 0.5}),  # which eval mode silences
    "ResNet": partial(clip, {"layers": [2, 1, 1, 2], "width": 8, "head_width": 8}),
    "timm ViT": partial(with_timm, "test_vit", 160),  # the size it is made for: others resample its positions in float32
    "timm ConvNeXt": partial(with_timm, "test_convnext", 32),
    "BERT": with_bert,
    "CoCa": lambda: open_clip.CoCa(
        16,
        open_clip.coca_model.MultimodalCfg(width=32, heads=2, layers=2, context_length=LENGTH),
        open_clip.CLIPTextCfg(**TEXT, embed_cls=True, output_tokens=True),
        open_clip.CLIPVisionCfg(**VIT, attentional_pool=True, attn_pooler_heads=2, output_tokens=True),
    ),
}


@pytest.fixture
def short_rows(monkeypatch):
    """So few tokens in a row that a handful of texts are several."""
    monkeypatch.setattr("gift_train.clip.prefix_tree.LONGEST_ROW", 8)


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def backbone(build=clip, precision="fp32"):
    """Every weight random, so that no term can hide behind a zero; also the first of equal seeds."""
    torch.manual_seed(0)
    network = build().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Backbone(network, None, precision)


def prompts(num_texts=9):
    """Texts of one template, so that they are a tree; two are equal."""
    tokens = torch.zeros(num_texts, LENGTH, dtype=torch.long)
    for number, row in enumerate(tokens):
        words = [1, 2, 3 + number % (num_texts - 1), *range(20, 20 + number % 5)]
        row[: len(words) + 2] = torch.tensor([START, *words, END])
    return tokens


def gradients(student, num_images=5, num_texts=9):
    """Features of both towers, and what a loss that mixes all of them sends back to each weight."""
    images = torch.randn(num_images, 3, *[student.image_settings[0]] * 2, generator=torch.Generator().manual_seed(3))
    features = student.encode_images(images), student.encode_texts(prompts(num_texts))
    student.network.zero_grad()
    (features[0] @ features[1].T * 5).softmax(dim=1).square().sum().backward()
    found = {name: p.grad for name, p in student.network.named_parameters() if p.grad is not None}
    return {"images": features[0].detach(), "texts": features[1].detach(), **found}


def saving(student, micro_batch_size=None, *, recomputes_blocks=False):
    student.micro_batch_size = micro_batch_size
    if recomputes_blocks:
        student.recompute_blocks()
    return student


@pytest.mark.usefixtures("in_float64", "short_rows")
@pytest.mark.parametrize("kind", NETWORKS)
def test_features_and_gradients_are_the_plain_ones(kind):
    build = NETWORKS[kind]
    plain = gradients(backbone(build))
    for student in (saving(backbone(build), 2), saving(backbone(build), 4, recomputes_blocks=True)):
        found = gradients(student)
        assert found.keys() == plain.keys()
        for name, tensor in plain.items():
            assert (found[name] - tensor).abs().max() <= 1e-10 * tensor.abs().max().clamp_min(1), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_blocks_change_no_bit(precision):
    plain, found = gradients(backbone(precision=precision)), gradients(saving(backbone(precision=precision), recomputes_blocks=True))
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


@pytest.mark.usefixtures("short_rows")
def test_micro_batches_in_bf16_are_those_of_the_batch_up_to_its_rounding():
    plain, found = gradients(backbone(precision="bf16")), gradients(saving(backbone(precision="bf16"), 2))
    for name, tensor in plain.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - tensor).norm() <= 0.02 * tensor.norm() + 1e-4, name


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_are_recomputed_as_they_are(monkeypatch, backend):
    """The first backend is all of torch.compile's tracing and differentiating, without building kernels."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    student = backbone()
    student.compile_blocks()
    found = gradients(saving(student, 2, recomputes_blocks=True), num_images=4)
    for name, tensor in gradients(backbone(), num_images=4).items():
        assert (found[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max().clamp_min(1e-2), name


def peak(micro_batch_size=None, *, recomputes_blocks=False, num_images=32):
    """The most bytes that a forward and a backward pass of the image tower hold beside weights, gradients and images."""
    student = saving(backbone(partial(clip, {"layers": 12, "patch_size": 8})), micro_batch_size, recomputes_blocks=recomputes_blocks)
    images, parameters = torch.randn(num_images, 3, 32, 32), list(student.network.visual.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        live.hold(images, *student.network.parameters(), *(parameter.grad for parameter in parameters))
        before = live.now
        student.encode_images(images).square().sum().backward()
        return live.peak - before


def test_micro_batches_hold_the_activations_of_one_micro_batch_and_the_gradients_that_add_up():
    whole, alone, in_parts = peak(), peak(num_images=2), peak(2)
    gradients = sum(parameter.numel() * 4 for parameter in clip({"layers": 12, "patch_size": 8}).visual.parameters())
    assert in_parts < alone + 1.1 * gradients
    assert in_parts < whole / 4


def test_recomputed_blocks_hold_what_enters_them_and_the_inside_of_one():
    whole, by_block = peak(), peak(recomputes_blocks=True)
    assert by_block < whole / 4
    assert peak(4, recomputes_blocks=True) < by_block


def test_nothing_is_computed_twice_where_no_gradient_is_wanted(monkeypatch):
    monkeypatch.setattr(recompute, "checkpoint", None)
    student = saving(backbone(), 2, recomputes_blocks=True)
    with torch.no_grad():
        assert torch.equal(student.encode_images(torch.ones(5, 3, 32, 32)), backbone().encode_images(torch.ones(5, 3, 32, 32)))
        assert torch.equal(student.encode_texts(prompts()), backbone().encode_texts(prompts()))


def test_a_tree_is_cut_between_its_rows_and_nothing_is_encoded_twice():
    tokens = prompts(400)
    tokens[:, 3] = torch.arange(400) % 90 + 1
    tree = build_prefix_tree(tokens, tokens.argmax(dim=1))
    assert tree.tokens.shape[0] > 4
    split = split_tree(tree, 2)
    assert [len(part.tokens) for part in split.parts[:-1]] == [2] * (len(split.parts) - 1)
    assert torch.equal(torch.cat([part.tokens for part in split.parts]), tree.tokens)
    paths = torch.cat([part.positions.flatten()[part.ends] for part in split.parts])[split.places]
    ends = torch.cat([part.tokens.flatten()[part.ends] for part in split.parts])[split.places]
    assert torch.equal(paths, tokens.argmax(dim=1))
    assert (ends == END).all()
    assert tree.tokens.shape[1] <= LONGEST_ROW


@pytest.mark.usefixtures("short_rows")
def test_the_trees_of_these_tests_have_several_parts():
    assert len(backbone()._prefix_tree(prompts(), 2).parts) > 1


def test_plain_texts_pass_as_many_at_once_as_fill_the_rows_of_a_tree():
    assert [texts_in_rows(4, length) for length in (16, 77, 512)] == [48, 8, 4]


def test_a_tree_of_few_rows_stays_whole():
    tree = build_prefix_tree(prompts(), prompts().argmax(dim=1))
    assert split_tree(tree, len(tree.tokens)).parts == (tree,)
    assert split_tree(tree, None).places is None


def test_a_class_that_is_recomputed_keeps_its_names_hooks_and_copies():
    student = saving(backbone(), recomputes_blocks=True)
    assert student.network.state_dict().keys() == backbone().network.state_dict().keys()
    assert towers.can_read_images(student.network)
    assert student.residual_blocks().keys() == backbone().residual_blocks().keys()
    copied = student.frozen_copy()
    with torch.no_grad():
        assert torch.equal(copied.encode_texts(prompts()), student.encode_texts(prompts()))
    calls = []
    block = student.network.visual.transformer.resblocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append(recompute.is_repetition()))
    saving(student, recomputes_blocks=True)  # a second time changes nothing
    student.encode_images(torch.randn(2, 3, 32, 32)).sum().backward()
    assert calls == [False, True]


def test_a_tower_without_blocks_is_refused_with_what_helps():
    network = clip()
    network.visual.transformer = nn.Identity()
    with pytest.raises(ConfigError, match="this model's image tower has no blocks; --micro-batch-size fits every model"):
        Backbone(network, None).recompute_blocks()


def test_a_batch_that_is_never_differentiated_leaves_nothing_behind():
    """What a recomputation would need is held by graphs, which Python's garbage collector does not see into."""
    student, route = saving(backbone(), 2), Route()
    settings = MixtureSettings(num_experts=3, top_k=2, bottleneck=4, expert_scale=0.5, dropout=0.1, gate_noise=1.0)
    attach_mixtures(student.residual_blocks(), 1, settings, route)
    with route.through(0, training=Batch(num_images=5, num_texts=9), measures_balance=True) as passage:
        features = student.encode_images(torch.randn(5, 3, 32, 32))
        assert len(passage.balances()) == 2
    left = weakref.ref(passage)
    del features, passage
    assert left() is None
