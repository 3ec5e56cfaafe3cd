"""What torch and open_clip do not promise to keep, each behind one module of ours: a test that fails here says which one to mend."""

import ast
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, text_global_pool
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

import gift_train
from gift_train.clip import towers
from gift_train.clip.linear import _product
from gift_train.clip.model import COMPILED_KINDS, Backbone
from gift_train.clip.model_config import build
from gift_train.clip.weights_files import put_weights

PACKAGE = Path(gift_train.__file__).parent
SCHEMA = "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
LISTWISE = ("_foreach_add_", "_foreach_copy_")


def moved(what, module):
    versions = f"torch {torch.__version__}, open_clip {open_clip.__version__}"
    return f"{what} is not what it was ({versions}): mend gift_train/{module}.py, which alone relies on it"


@pytest.fixture
def network():
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=32, layers=2, head_width=16)
    text = open_clip.CLIPTextCfg(context_length=10, vocab_size=50, width=32, heads=2, layers=2)
    return open_clip.CLIP(16, vision, text, quick_gelu=True).eval()


@pytest.mark.parametrize("has_bias", [True, False])
def test_torch_has_the_operator_of_onednn(has_bias):
    message = moved("torch.ops.mkldnn._linear_pointwise", "clip/linear")
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise"), message
    assert str(torch.ops.mkldnn._linear_pointwise.default._schema) == SCHEMA, message
    rows, weight, bias = torch.randn(64, 48), torch.randn(32, 48), torch.randn(32) if has_bias else None
    assert torch.allclose(_product(rows, weight, bias), F.linear(rows, weight, bias), atol=1e-4), message


def test_torch_counts_what_it_compiles_up_to_the_limit_we_set(network):
    """torch.compiler.config is public; that its limit is the one that the compiler asks is what we rely on."""
    assert "recompile_limit" in torch.compiler.config.__all__, moved("torch.compiler.config.recompile_limit", "clip/model")
    with torch._dynamo.config.patch(recompile_limit=8):
        Backbone(network, None).compile_blocks()
        assert torch._dynamo.config.recompile_limit == COMPILED_KINDS, moved("torch.compiler.config.recompile_limit", "clip/model")


def test_torch_says_by_these_errors_that_it_cannot_compile():
    """Errors without a public name: of code that is no graph, and of code that would need too many (training/compiled_losses.py)."""

    def graph(function):
        return torch.compile(function, backend="eager", fullgraph=True, dynamic=False, recompile_limit=1)

    asking, doubled = graph(lambda number: number if number.item() > 0 else -number), graph(lambda numbers: 2 * numbers)
    with pytest.raises(TorchDynamoException):
        asking(torch.ones(1))
    doubled(torch.ones(2))
    with pytest.raises(FailOnRecompileLimitHit):
        doubled(torch.ones(3))


def test_torch_keeps_a_modules_hooks_where_we_look_for_them():
    module = nn.Linear(2, 2)
    assert not towers._has_hooks(module)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert towers._has_hooks(module), moved(f"torch.nn.Module.{register.__name__}", "clip/towers")
        handle.remove()
        assert not towers._has_hooks(module), moved(f"torch.nn.Module.{register.__name__}", "clip/towers")


@pytest.mark.parametrize("name", LISTWISE)
def test_torch_computes_on_lists_of_tensors(name):
    """What its optimizers use, on two lists; the public way is a loop, which launches a kernel a tensor."""
    assert hasattr(torch, name), f"torch.{name} is gone: write the loop in distributed/gradients.py and clip/flat_tensors.py"
    first, second = ([torch.full((2,), value) for value in values] for values in ((3.0, 5.0), (2.0, 7.0)))
    getattr(torch, name)(first, second)
    expected = {"_foreach_add_": [5.0, 12.0], "_foreach_copy_": [2.0, 7.0]}
    assert [float(tensor[0]) for tensor in first] == expected[name]


@pytest.mark.parametrize(("pool_type", "end_id"), [("argmax", None), ("eos", 7)])
def test_open_clip_reads_a_text_where_we_say(network, pool_type, end_id):
    network.text_pool_type, network.text_eos_id = pool_type, end_id
    tokens = torch.tensor([[1, 7, 9, 7], [9, 3, 9, 7], [2, 2, 7, 0]])
    hidden = torch.randn(3, 4, 5)
    ours = hidden[torch.arange(3), towers.text_ends(network, tokens)]
    theirs = text_global_pool(hidden, tokens, pool_type, eos_token_id=end_id)
    assert torch.equal(ours, theirs), moved("open_clip.transformer.text_global_pool", "clip/towers")


def test_open_clips_blocks_are_built_as_we_run_them(network):
    block = network.transformer.resblocks[0]
    parts = {
        "ln_1": nn.LayerNorm, "attn": nn.MultiheadAttention, "ls_1": nn.Identity,
        "ln_2": nn.LayerNorm, "mlp.c_fc": nn.Linear, "mlp.gelu": QuickGELU, "mlp.c_proj": nn.Linear, "ls_2": nn.Identity,
    }  # fmt: skip
    found = {name: module for name, module in block.named_modules() if name in parts}
    assert type(block) is ResidualAttentionBlock, moved("open_clip's residual block", "clip/towers")
    assert {name: type(module) for name, module in found.items() if not isinstance(module, parts[name])} == {}
    assert found.keys() == parts.keys(), moved("open_clip's residual block", "clip/towers")
    others = {name for name, _ in block.named_parameters()} - {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    expected = {f"attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
    assert others == expected, moved("open_clip's residual block", "clip/towers")
    hidden = torch.randn(2, 5, 32)
    assert torch.allclose(towers.block_output(block, hidden), block(hidden), atol=1e-5), moved("open_clip's residual block", "clip/towers")


def test_open_clips_quick_gelu_has_the_slope_we_move_into_weights():
    values = torch.linspace(-4, 4, 50)
    ours = F.silu(towers.QUICK_GELU_SLOPE * values) / towers.QUICK_GELU_SLOPE
    assert torch.allclose(QuickGELU()(values), ours, atol=1e-6), moved("open_clip's QuickGELU", "clip/towers")


def test_open_clips_networks_have_what_the_towers_read(network):
    assert towers.can_read_images(network), moved("open_clip's VisionTransformer", "clip/towers")
    assert towers.can_read_texts(network), moved("open_clip's CLIP", "clip/towers")
    names = set(towers.residual_blocks(network))
    assert names == {f"{tower}transformer.{number}" for tower in ("", "visual.") for number in (0, 1)}, moved(
        "open_clip's CLIP", "clip/towers"
    )


@pytest.mark.parametrize(("custom_text", "image_size"), [(False, 16), (True, 16), (True, 32)])
def test_open_clip_makes_weights_fit_as_we_let_it(network, tmp_path, custom_text, image_size):
    """Names of older files, scales of one number, grids of other sizes: as its own loading."""
    tensors = network.state_dict()
    tensors["logit_scale"] = tensors["logit_scale"][None]
    torch.save(tensors, tmp_path / "weights.pt")
    sizes = {"width": 32, "layers": 2}
    vision, text = sizes | {"image_size": image_size, "patch_size": 8, "head_width": 16}, sizes | {"vocab_size": 50, "heads": 2}
    model_cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text | {"context_length": 12}, "custom_text": custom_text}
    ours, theirs = build({"model_cfg": model_cfg}), build({"model_cfg": model_cfg})
    put_weights(ours, tmp_path / "weights.pt", "model")
    open_clip.load_checkpoint(theirs, str(tmp_path / "weights.pt"))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), moved("open_clip.load_checkpoint", "clip/weights_files")


def test_private_interfaces_are_used_in_these_modules_alone():
    used = {(name, str(path.relative_to(PACKAGE))) for path in PACKAGE.rglob("*.py") for name in private(path)}
    assert used == {
        ("torch.ops", "clip/linear.py"),
        ("_forward_hooks", "clip/towers.py"),
        ("_forward_pre_hooks", "clip/towers.py"),
        ("open_clip.hf_model", "clip/towers.py"),
        ("open_clip.tokenizer", "clip/forms.py"),
        ("open_clip.tokenizer", "clip/tokenizers.py"),
        ("open_clip.transformer", "clip/towers.py"),
        ("open_clip.convert", "clip/weights_files.py"),
        ("open_clip.model", "clip/weights_files.py"),
        ("open_clip.tokenizer", "clip/forms.py"),
        ("open_clip.tokenizer", "clip/transformers_export.py"),
        ("torch._C", "data/loader.py"),
        ("torch._dynamo.exc", "training/compiled_losses.py"),
        ("torch._foreach", "clip/flat_tensors.py"),
        ("torch._foreach", "distributed/gradients.py"),
    }


def private(path):
    """Names of torch's and open_clip's own that a file uses."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("open_clip.", "torch._")):
            yield node.module
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text.startswith("torch._foreach_"):
                yield "torch._foreach"
            elif text.startswith("torch._") or text == "torch.ops":
                yield text
            elif node.attr in ("_forward_hooks", "_forward_pre_hooks", "_modules", "_parameters", "_buffers"):
                yield node.attr
