"""Losses that are compiled whole are those of the method, up to rounding; what cannot be compiled is told and computed as ever.

Most of these tests trace and differentiate as torch.compile does and build no kernels, so that they need no C++ compiler and little time.
A part that cannot be traced is no graph at all: fullgraph is on throughout.
"""

import dataclasses
import logging
import re
import runpy
from pathlib import Path

import pytest
import torch

from gift_shared.errors import MachineError
from gift_train.data.replay import ReplayBatch
from gift_train.distributed import SINGLE, Ranks
from gift_train.methods.base import LossTerms, Method
from gift_train.methods.finetune import ContinualFinetune
from gift_train.methods.registry import forget
from gift_train.training.compiled_losses import MOST_OF_ONE_SHAPE, CompiledLosses, num_graphs
from gift_train.training.faults import machine_faults
from gift_train.training.loop import train_steps, training_step

DEFINED = runpy.run_path(str(Path(__file__).parents[1] / "distributed/program.py"))
PAGE = Path(__file__).parents[3] / "docs/add_a_method.md"
IN_PARTS = [name for name in DEFINED["METHODS"] if not name.startswith(("moe_adapter", "rail"))]
FAST = ("gift",)
STEPS = 5  # the fourth sees fewer images


@pytest.fixture
def compile_by(monkeypatch):
    """A function: from now on torch.compile compiles by this backend."""
    compiled = torch.compile

    def choose(backend):
        torch.compiler.reset()
        monkeypatch.setattr(torch, "compile", lambda function, *, mode=None, **told: compiled(function, backend=backend, **told))

    yield choose
    torch.compiler.reset()


@pytest.fixture
def in_float64():
    """So that a bound leaves room for the order of sums and for nothing else."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def compiled(training):
    return dataclasses.replace(training, compiled=CompiledLosses(training.method, training.student, training.ranks))


def begin(variant, **how):
    return DEFINED["begin"](variant, SINGLE, **how)


def steps(training, num_steps=STEPS):
    """Of every step its terms and gradients; then the weights."""
    found = {}
    for (step, terms), _ in zip(train_steps(training, DEFINED["batches"](training)), range(num_steps), strict=False):
        found |= {f"{step}/term {name}": term for name, term in terms.items()}
        found |= {f"{step}/gradient of {name}": p.grad.clone() for name, p in training.parameters.items() if p.grad is not None}
    return found | {f"weights/{name}": tensor for name, tensor in training.student.weights_copy().items()}


def notes(caplog):
    """What is ours of what was logged."""
    return [record for record in caplog.records if record.name.startswith("gift_train")]


def assert_same(found, expected, bound):
    assert found.keys() == expected.keys()
    width = DEFINED["WIDTH"]
    for name, tensor in expected.items():
        difference = (found[name] - tensor).abs()
        if name.endswith("attn.in_proj_bias"):  # the key's, which softmax ignores: its gradient is rounding, which AdamW blows up
            difference[width : 2 * width] = 0
        assert difference.max() < bound, name


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("variant", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in IN_PARTS])
def test_steps_with_compiled_losses_are_those_without(variant, compile_by, caplog):
    expected = steps(begin(variant))
    compile_by("aot_eager")
    before = num_graphs()
    found = steps(compiled(begin(variant)))
    # One graph for each loss: none for the smaller batch, and how many of a batch's captions are different is another number each time.
    assert num_graphs() - before == 1 + any("distillation" in name for name in expected)
    assert not notes(caplog)
    assert_same(found, expected, 1e-10)


def test_losses_in_bf16_are_compiled_as_the_towers_pass(compile_by, caplog):
    found = {}
    for is_compiled in (False, True):
        training = begin("finetune")
        training.student.precision = "bf16"
        if is_compiled:
            compile_by("eager")
            training = compiled(training)
        found[is_compiled] = {name: tensor for name, tensor in steps(training, 1).items() if name.startswith("0/")}
    assert not notes(caplog)
    assert found[True].keys() == found[False].keys()
    for name, tensor in found[True].items():
        assert tensor.dtype == torch.float32
        assert (tensor - found[False][name]).norm() <= 0.02 * found[False][name].norm() + 1e-4, name


def test_many_batches_of_different_captions_are_one_graph_or_two(compile_by):
    compile_by("eager")
    training, numbers, before = compiled(begin("gift_text_only")), torch.Generator().manual_seed(0), num_graphs()
    training.student.compile_blocks()
    given, sizes = set(), set()
    for _ in range(12):
        batch = replay_batch(numbers)
        given.add(training.method.teacher.backbone.text_tree(batch.tokens).parts[0].nodes.shape)
        sizes.add(training.student.text_tree(batch.tokens).parts[0].nodes.shape)
        training.losses.replay(batch)
    assert num_graphs() - before == len(sizes)
    assert len(sizes) <= 2 < 4 < len(given)
    training.method.begin_task(training.method.context, training.student)
    training.losses.replay(batch)
    assert num_graphs() - before == len(sizes)  # tasks share them


def replay_batch(numbers, size=24):
    """Pictures with captions of two to eight tokens, some of them twice."""
    tokens = torch.randint(1, 40, (size, 10), generator=numbers)
    lengths = torch.randint(2, 9, (size,), generator=numbers)
    tokens[:, 0] = 48
    tokens[torch.arange(size), lengths] = 49
    tokens[torch.arange(10) > lengths[:, None]] = 0
    repeated = torch.arange(size) % (size - 3)
    return ReplayBatch(
        images=torch.randn(size, 3, 16, 16),
        captions=tuple(map(str, repeated.tolist())),
        tokens=tokens[repeated],
        caption_ids=repeated,
        sample_keys=tuple(map(str, range(size))),
    )


class Whole(ContinualFinetune):
    """A method of before there were inputs and terms."""

    def task_loss(self, student, batch):
        return LossTerms(twice=2 * super().task_loss(student, batch)["cross_entropy"])


class Counting(ContinualFinetune):
    """Its loss grows with a number that is no tensor."""

    count = 0

    def task_terms(self, student, inputs):
        self.count += 1
        return LossTerms(grows=self.count * super().task_terms(student, inputs)["cross_entropy"])


class Asking(ContinualFinetune):
    """Its loss looks at a value before it goes on."""

    def task_terms(self, student, inputs):
        loss = super().task_terms(student, inputs)["cross_entropy"]
        return LossTerms(asked=loss if loss.item() > 0 else 2 * loss)


class Words(ContinualFinetune):
    """Its inputs are told by name."""

    def task_inputs(self, student, batch):
        return {"inputs": super().task_inputs(student, batch)}

    def task_terms(self, student, inputs):
        return super().task_terms(student, inputs["inputs"])


NOTES = {
    Whole: "the task loss is not compiled whole, its blocks are as by --compile: method 'finetune' gives it whole",
    Counting: "it depends on numbers that change, as a count of steps does, and would be compiled for each.",
    Asking: "data-dependent",
    Words: "its inputs are a dict and no dataclass (docs/add_a_method.md).",
}


@pytest.mark.parametrize("method_class", [pytest.param(one, marks=pytest.mark.slow if one is Counting else ()) for one in NOTES])
def test_a_loss_that_is_no_graph_is_told_in_one_line_and_computed_as_ever(method_class, compile_by, caplog):
    expected = steps(of_class(method_class), MOST_OF_ONE_SHAPE + 2)
    compile_by("eager")
    before = num_graphs()
    assert_same(steps(compiled(of_class(method_class)), MOST_OF_ONE_SHAPE + 2), expected, 1e-6)
    assert num_graphs() - before <= MOST_OF_ONE_SHAPE + 1
    [record] = notes(caplog)
    assert record.levelno == logging.WARNING
    assert NOTES[method_class] in record.getMessage()
    assert "\n" not in record.getMessage()


def of_class(method_class):
    training = begin("finetune")
    method = method_class(training.method.config)
    method.context = training.method.context
    return dataclasses.replace(training, method=method)


def test_adapters_micro_batches_and_several_processes_leave_losses_as_they_are(caplog):
    reasons = ("gives it whole", "something listens in on their blocks, as adapters do", "--micro-batch-size and --gradient-checkpointing")
    adapted, in_parts, hooked = begin("moe_adapter"), begin("gift", micro_batch_size=2), begin("finetune")
    hooked.student.network.visual.transformer.resblocks[0].register_forward_hook(lambda *_: None)
    for training, replay in ((adapted, None), (in_parts, DEFINED["replay_batch"](0, SINGLE)), (hooked, None)):
        training_step(compiled(training), DEFINED["task_batch"](0, SINGLE), replay)
    told = [record.getMessage() for record in notes(caplog)]
    assert len(told) == 4  # both losses in micro-batches
    assert all(any(reason in line for line in told) for reason in reasons)
    caplog.clear()
    shared = CompiledLosses(in_parts.method, in_parts.student, Ranks(world_size=2))
    assert not notes(caplog)  # a loss that a method does not have is not told of
    shared.task(DEFINED["task_batch"](0, SINGLE))
    shared.task(DEFINED["task_batch"](1, SINGLE))
    [record] = notes(caplog)
    assert record.getMessage().endswith("by --compile: several processes share each batch.")


def test_the_page_on_methods_tells_a_loss_that_compiles(compile_by, caplog):
    names = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[:2]:
        exec(block, names)
    forget(["relations"])
    whole = names["Relations"]
    told = {name: names[name] for name in ("replay_inputs", "replay_terms")}
    in_parts = type("InParts", (whole,), {**told, "replay_loss": Method.replay_loss})

    def training(method_class):
        started = begin("gift")
        method = method_class(whole.Config(weight=10.0))
        method.begin_task(started.method.context, started.student)
        return dataclasses.replace(started, method=method)

    expected = steps(training(whole), 3)
    compile_by("eager")
    before = num_graphs()
    assert_same(steps(compiled(training(in_parts)), 3), expected, 1e-6)
    assert num_graphs() - before == 2
    assert not notes(caplog)


def test_an_error_of_the_compiler_is_one_line(compile_by):
    def broken(graph, inputs):
        raise RuntimeError("no kernel fits")

    compile_by(broken)
    told = r"torch's compiler failed: .*no kernel fits.* Leave --compile and --compile-step out"
    with pytest.raises(MachineError, match=told), machine_faults():
        torch.compile(torch.sin)(torch.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gift", "finetune", "zscl"])
def test_steps_by_built_kernels_are_those_without(variant):
    assert_same(steps(compiled(begin(variant))), steps(begin(variant)), 2e-3)
