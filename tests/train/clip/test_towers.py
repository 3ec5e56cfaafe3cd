"""The towers as we run them, and texts as a tree of prefixes, against open_clip's own forward passes in value and gradient."""

from dataclasses import dataclass
from functools import partial

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gift_train.clip import towers
from gift_train.clip.model import Backbone
from gift_train.clip.prefix_tree import LONGEST_ROW, build_prefix_tree
from gift_train.clip.tree_buckets import LENGTH_STEP, bucket, in_bucket
from gift_train.data.batches import TaskBatch, place_replay, place_task
from gift_train.data.replay import ReplayBatch
from gift_train.distributed import SINGLE
from gift_train.methods.base import TaskContext
from gift_train.methods.gift import Gift
from gift_train.parity.replay import VARIANTS
from gift_train.recipes.recipe import OptimizerSettings
from gift_train.recipes.typed_table import parse_table
from gift_train.training.compiled_losses import CompiledLosses
from gift_train.training.loop import Schedule, Training, build_optimizer, training_step

START, END = 98, 99


def clip(*, is_quick_gelu=True, pools="argmax", has_layer_scale=False, projects_with_linear=False):
    """A CLIP of two narrow layers, every weight random, so that no term can hide behind a zero."""
    torch.manual_seed(0)
    text = open_clip.CLIPTextCfg(
        context_length=77,
        vocab_size=100,
        width=32,
        heads=2,
        layers=2,
        pool_type=pools,
        eos_id=END,
        ls_init_value=0.5 if has_layer_scale else None,
        proj_type="linear" if projects_with_linear else "default",
    )
    vision = open_clip.CLIPVisionCfg(
        image_size=24, patch_size=8, width=48, layers=2, head_width=16, ls_init_value=0.5 if has_layer_scale else None
    )
    network = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=is_quick_gelu).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def texts(*rows):
    """Token rows [K, 77] that start, end and are padded as CLIP's are."""
    tokens = torch.zeros(len(rows), 77, dtype=torch.long)
    for row, words in enumerate(rows):
        tokens[row, : len(words) + 2] = torch.tensor([START, *words, END])
    return tokens


def class_prompts(num_classes=30):
    """Prompts of one template, class names of different lengths; names that begin alike, and one that others begin with."""
    generator = torch.Generator().manual_seed(1)
    names = [torch.randint(1, 6, (1 + number % 4,), generator=generator).tolist() for number in range(num_classes)]
    return texts(*([10, 11, 12, *name, 13] for name in names))


def gradients(network, features):
    network.zero_grad()
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def every_product_by(monkeypatch, request):
    """Which library multiplies, whatever the processor and however small the product."""
    monkeypatch.setattr("gift_train.clip.linear.favours_onednn", lambda: request.param)
    monkeypatch.setattr("gift_train.clip.linear.FEWEST_PRODUCTS", 0)


def assert_same(network, ours, plain, ours_gradients):
    assert torch.allclose(ours, plain, atol=2e-6)
    plain_gradients = gradients(network, plain)
    assert ours_gradients.keys() == plain_gradients.keys()
    for name, gradient in plain_gradients.items():
        assert (ours_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


@pytest.mark.usefixtures("every_product_by")
@pytest.mark.parametrize(
    "build",
    [
        {},
        {"is_quick_gelu": False},
        {"pools": "eos"},
        {"has_layer_scale": True},
        {"projects_with_linear": True},
    ],
    ids=["quick gelu, argmax", "gelu", "eos", "layer scale", "linear projection"],
)
def test_packed_texts_give_the_plain_features_and_gradients(build):
    network = clip(**build)
    tokens = class_prompts()
    tokens[7] = tokens[3]  # equal texts share their nodes, and their gradients add up
    assert towers.can_read_texts(network)
    ours = Backbone(network, None).encode_texts(tokens)
    plain = F.normalize(network.encode_text(tokens), dim=-1)
    assert_same(network, ours, plain, gradients(network, ours))


@pytest.mark.usefixtures("every_product_by")
@pytest.mark.parametrize("build", [{}, {"is_quick_gelu": False}, {"has_layer_scale": True}], ids=["quick gelu", "gelu", "layer scale"])
def test_images_give_the_plain_features_and_gradients(build):
    network = clip(**build)
    images = torch.randn(3, 3, 24, 24)
    assert towers.can_read_images(network)
    ours = Backbone(network, None).encode_images(images)
    plain = F.normalize(network.encode_image(images), dim=-1)
    assert_same(network, ours, plain, gradients(network, ours))


def test_the_tree_holds_each_prefix_once_by_hand():
    packed = build_prefix_tree(texts([1, 2], [1, 3], [1, 2]), torch.tensor([3, 3, 3]))
    # start, 1, 2, end of the first; 3, end of the second
    assert packed.tokens.tolist() == [[START, 1, 2, END, 3, END, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3, 0, 0]]
    assert packed.ends.tolist() == [3, 5, 3]
    seen = [row.nonzero().flatten().tolist() for row in packed.attends[0]]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [6], [7]]


def test_rows_stay_short_and_every_text_ends_where_it_should():
    tokens = class_prompts(400) + 0
    tokens[:, 4] = torch.arange(400) % 90 + 1
    last = tokens.argmax(dim=1)
    packed = build_prefix_tree(tokens, last)
    assert packed.tokens.shape[1] <= LONGEST_ROW
    assert (packed.tokens.flatten()[packed.ends] == END).all()
    assert torch.equal(packed.positions.flatten()[packed.ends], last)
    assert packed.tokens.numel() < int((last + 1).sum())


@pytest.mark.parametrize("longest_row", [8, 40, LONGEST_ROW])
@pytest.mark.parametrize("vocabulary", [2, 3, 50])  # nearly all alike, to nearly none
def test_what_a_node_attends_to_spells_its_prefix_and_no_prefix_is_twice_in_a_row(vocabulary, longest_row, monkeypatch):
    monkeypatch.setattr("gift_train.clip.prefix_tree.LONGEST_ROW", longest_row)
    generator = torch.Generator().manual_seed(vocabulary)
    tokens = torch.randint(vocabulary, (60, 12), generator=generator)
    last = torch.randint(12, (60,), generator=generator)
    tokens[30:40], last[30:40] = tokens[:10].clone(), last[:10]  # equal texts
    packed = build_prefix_tree(tokens, last)
    attends = packed.attends
    num_nodes = 0
    for row, row_attends in zip(packed.tokens, attends, strict=True):
        spelled = [tuple(row[seen].tolist()) for seen in row_attends]
        real = [place for place, seen in enumerate(row_attends) if seen.sum() > 1 or place == 0 or row_attends[:, place].sum() > 1]
        assert len({spelled[place] for place in real}) == len(real)
        num_nodes += len(real)
    for text, end, place in zip(tokens.tolist(), last.tolist(), packed.ends.tolist(), strict=True):
        row, column = divmod(place, packed.tokens.shape[1])
        assert packed.tokens[row][attends[row, column]].tolist() == text[: end + 1]
    prefixes = {tuple(text[:length]) for text, end in zip(tokens.tolist(), last.tolist(), strict=True) for length in range(1, end + 2)}
    assert num_nodes >= len(prefixes) - 60  # a text of one token that nothing continues looks like filling
    assert packed.ends[30:40].tolist() == packed.ends[:10].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_converted_mask_is_what_attention_would_make_of_it_bit_for_bit(dtype):
    tokens = class_prompts(200)
    packed = build_prefix_tree(tokens, tokens.argmax(dim=1))
    num_rows, length = packed.tokens.shape
    outcomes = []
    for mask in (packed.attends[:, None], packed.attention_bias(dtype)):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(3, num_rows, 2, length, 16, generator=generator).to(dtype).requires_grad_()
        mixed = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
        mixed.float().square().sum().backward()
        outcomes.append((mixed, inputs.grad))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])


def test_a_text_as_long_as_the_context_has_room():
    network = clip()
    tokens = texts(list(range(1, 76)), [5])
    ours = Backbone(network, None).encode_texts(tokens)
    assert torch.allclose(ours, F.normalize(network.encode_text(tokens), dim=-1), atol=2e-6)


def test_texts_that_come_back_are_packed_once_and_changed_ones_anew():
    backbone = Backbone(clip(), None)
    tokens = class_prompts()
    packed = backbone._prefix_tree(tokens)
    assert backbone._prefix_tree(tokens.clone()) is packed
    tokens[0, 4] = 77
    assert backbone._prefix_tree(tokens) is not packed


@pytest.mark.parametrize("change", ["hook", "checkpointing", "average pooling", "patch dropout"])
def test_a_network_of_another_build_is_left_to_open_clip(change):
    network = clip()
    if change == "hook":
        network.visual.transformer.resblocks[0].mlp.register_forward_hook(lambda *_: None)
        network.transformer.resblocks[1].ln_2.register_forward_pre_hook(lambda *_: None)
    elif change == "checkpointing":
        network.set_grad_checkpointing()
    elif change == "average pooling":
        network.visual.pool_type = "avg"
        network.text_pool_type = "last"
    else:
        network.visual.patch_dropout = open_clip.transformer.PatchDropout(0.5).eval()
    assert not towers.can_read_images(network)
    assert towers.can_read_texts(network) == (change == "patch dropout")
    images, tokens = torch.randn(2, 3, 24, 24), class_prompts(4)
    backbone = Backbone(network, None)
    assert torch.equal(backbone.encode_images(images), F.normalize(network.encode_image(images), dim=-1))
    plain = F.normalize(network.encode_text(tokens), dim=-1)
    assert torch.allclose(backbone.encode_texts(tokens), plain, atol=2e-6)
    assert torch.allclose(backbone.encode_texts(backbone.trim(tokens)), plain, atol=2e-6)


@dataclass(frozen=True)
class Trial:
    """GIFT on a small CLIP, and a batch of each kind."""

    training: Training
    task_batch: TaskBatch
    replay_batch: ReplayBatch

    def steps(self, num_steps):
        """Loss of every step."""
        return [training_step(self.training, self.task_batch, self.replay_batch) for _ in range(num_steps)]


def trial(precision="fp32", *, compiles=False, compiles_step=False, device="cpu"):
    student = Backbone(clip().to(device), None, precision)
    if compiles or compiles_step:
        student.compile_blocks()
    torch.manual_seed(2)
    captions = class_prompts(4)[[0, 1, 2, 3, 1, 0]]
    replay_batch = ReplayBatch(
        images=torch.randn(6, 3, 24, 24),
        captions=tuple("abcdba"),
        tokens=captions,
        caption_ids=torch.tensor([0, 1, 2, 3, 1, 0]),
        sample_keys=tuple("uvwxyz"),
        caption_tree=student.tree_maker(class_prompts(4)),
    )
    placed = place_replay(replay_batch, student)
    context = TaskContext(
        task_name="trial",
        task_index=0,
        num_steps=20,
        label_smoothing=0.2,
        class_tokens=student.trim(class_prompts(5)),
        reference_tokens=None,
        initial_weights={},
        replay_pass=lambda: iter([placed]),
        task_images=lambda _: iter(()),
    )
    method = Gift(parse_table(Gift.Config, VARIANTS["gift"][1], "trial"))
    method.begin_task(context, student)
    parameters = method.trainable(student)
    settings = OptimizerSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)
    optimizer = build_optimizer(parameters, settings)
    optimizer.param_groups[0]["lr"] = 1e-3
    schedule = Schedule(peak=1e-3, warmup_steps=1, total_steps=20)
    training = Training(
        method=method,
        student=student,
        parameters=parameters,
        optimizer=optimizer,
        schedule=schedule,
        compiled=CompiledLosses(method, student, SINGLE) if compiles_step else None,
    )
    task_batch = TaskBatch(images=torch.randn(6, 3, 24, 24), labels=torch.arange(6) % 5)
    return Trial(training, place_task(task_batch, student), placed)


def totals(terms):
    return [float(torch.stack(list(term.values())).sum()) for term in terms]


def test_bf16_stays_close_to_fp32_and_keeps_weights_and_losses_in_fp32():
    # 8 bits of mantissa: features of length 1 agree to about 2^-8 times a few; logits are 14 times a feature product here.
    plain, low = trial(), trial("bf16")
    images = plain.task_batch.images
    features = plain.training.student.encode_images(images), low.training.student.encode_images(images)
    assert features[1].dtype == torch.float32
    assert 0 < (features[0] - features[1]).abs().max() < 2e-2
    first, second = plain.steps(1)[0], low.steps(1)[0]
    for name in first:
        assert second[name].dtype == torch.float32
        assert float(second[name]) == pytest.approx(float(first[name]), rel=2e-2, abs=1e-3)
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in low.training.parameters.values())


def test_bf16_trains():
    losses = totals(trial("bf16").steps(15))
    assert losses[-1] < losses[0] - 0.2


def test_a_step_in_bf16_casts_each_weight_once_for_both_losses():
    training = trial("bf16")
    training.steps(1)
    network = training.training.student.network
    attention = [block.attn.in_proj_weight for block in (*network.visual.transformer.resblocks, *network.transformer.resblocks)]
    widening = [block.mlp.c_fc.weight for block in (*network.visual.transformer.resblocks, *network.transformer.resblocks)]
    with Prepared() as asked:
        training.steps(1)
    assert [sum(one is weight for one in asked.cast) for weight in attention] == [1] * len(attention)
    assert [sum(one is weight for one in asked.multiplied) for weight in widening] == [1] * len(widening)


class Prepared(TorchDispatchMode):
    """Which tensors were cast, and which multiplied into another one."""

    def __init__(self):
        super().__init__()
        self.cast, self.multiplied = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.cast.append(args[0])
        elif func in (torch.ops.aten.mul.out, torch.ops.aten.mul.Tensor):
            self.multiplied.append(args[0])
        return func(*args, **(kwargs or {}))


def test_weights_prepared_once_give_the_same_bits():
    backbone, images, tokens = Backbone(clip(), None), torch.randn(2, 3, 24, 24), class_prompts(4)
    plain = torch.cat([backbone.encode_images(images), backbone.encode_texts(tokens)])
    plain_gradients = gradients(backbone.network, plain)
    with backbone.weights_prepared_once():
        with torch.no_grad():  # what is made without a graph must not serve with one
            backbone.encode_images(images)
        for _ in range(2):
            once = torch.cat([backbone.encode_images(images), backbone.encode_texts(tokens)])
            once_gradients = gradients(backbone.network, once)
            assert torch.equal(once, plain)
            assert all(torch.equal(once_gradients[name], gradient) for name, gradient in plain_gradients.items())


@pytest.mark.parametrize("num_classes", [1, 30, 400])
def test_a_tree_in_a_bucket_gives_the_features_of_the_tree(num_classes):
    network, tokens = clip(), class_prompts(num_classes)
    tree = build_prefix_tree(tokens, tokens.argmax(dim=1))
    larger = in_bucket(tree)
    assert larger.tokens.shape[1] % LENGTH_STEP == 0
    assert larger.tokens.shape[0] == bucket(len(tree.tokens))
    plain, ours = (towers.text_features(network, one, towers.block_output) for one in (tree, larger))
    assert torch.allclose(ours, plain, atol=2e-6)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_steps_up_to_rounding():
    plain, compiled = totals(trial().steps(5)), totals(trial(compiles=True).steps(5))
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_compiled_blocks_see_texts_in_few_shapes(monkeypatch):
    """Batches of captions are trees of a new shape each time."""
    monkeypatch.setattr(torch, "compile", lambda block_output, **_: partial(noting, block_output))
    student, numbers = Backbone(clip(), None), torch.Generator().manual_seed(0)
    given, seen = set(), set()

    def noting(block_output, block, hidden, attends):
        seen.add(hidden.shape)
        return block_output(block, hidden, attends)

    student.compile_blocks()
    for size in range(8, 40):
        rows = torch.randint(1, 90, (size, 9), generator=numbers).tolist()
        tokens = texts(*(row[: 2 + number % 8] for number, row in enumerate(rows)))
        given.add(build_prefix_tree(tokens, tokens.argmax(dim=1)).tokens.shape)
        student.encode_texts(tokens)
    assert all(length % LENGTH_STEP == 0 and bucket(num_rows) == num_rows for num_rows, length, _ in seen)
    assert len(seen) < len(given)


def test_no_kind_of_call_that_a_run_makes_falls_back_to_uncompiled_blocks(monkeypatch):
    """Batches of several sizes and sets of texts, with gradients, of a teacher and without: more kinds than torch keeps by itself."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traces and counts; builds no kernels
    with torch._dynamo.config.patch(cache_size_limit=8, fail_on_cache_limit_hit=True):
        student = Backbone(clip(), None)
        student.compile_blocks()
        teacher = student.frozen_copy()
        for reader, trains in ((student, True), (teacher, False), (student, False)):
            with torch.set_grad_enabled(trains):
                for size in (6, 1):
                    reader.encode_images(torch.randn(size, 3, 24, 24))
                    reader.encode_texts(class_prompts(5 * size))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_by_cuda_graphs_are_those_without(precision, caplog):
    """Terms are read after all steps, as a run reads them: each graph has been recorded and replayed over its own memory by then."""
    plain, graphs = trial(precision, device="cuda"), trial(precision, compiles_step=True, device="cuda")
    rounding = 1e-4 if precision == "fp32" else 2e-2
    assert totals(graphs.steps(12)) == pytest.approx(totals(plain.steps(12)), rel=rounding)
    assert not [record for record in caplog.records if record.name.startswith("gift_train")]


@pytest.mark.gpu
def test_a_training_step_never_waits_for_the_device():
    on_device = trial("bf16", device="cuda")
    on_device.steps(2)  # the first makes the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = on_device.steps(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value < 1e3 for value in totals(terms))
