"""Operators of a training step at full size, counted: what a GPU's host has to ask for. Nothing is computed, and no GPU is needed.

python benchmarks/step_operators.py [--quick]

With --compile-step most of them are inside graphs, which a host asks for as one each. What is left outside is counted on a model of as many
layers and tensors that is narrow enough to be computed; and how many graphs a run of batches of different captions makes, and why each.

The trainer's own step runs on tensors without data (`step_memory`). Counted is every operator that would start a kernel: not those that
make a view or reserve memory. One that works on a list of tensors starts several kernels on a GPU; `launches` says how many by the limits
of torch's own: a cat takes 128 tensors a kernel, a `_foreach` operator so many tensors and so many chunks of 65,536 entries.
"""

import argparse
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import open_clip
import torch
from functorch.compile import make_boxed_func
from measure import Finding, report
from step_memory import BATCH_SIZE, DATASET, KnownTexts, gift_training
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from gift_shared.manifests import Manifests
from gift_train.clip import flat_tensors
from gift_train.clip.model import Backbone, Precision
from gift_train.clip.prefix_tree import build_prefix_tree, split_tree
from gift_train.distributed import SINGLE
from gift_train.training.compiled_losses import CompiledLosses, num_graphs
from gift_train.training.loop import training_step

MODEL = "ViT-B-16-quickgelu"
NUM_BATCHES = 60  # of captions drawn anew
CAT_TENSORS, FOREACH_CHUNK, FOREACH_CHUNKS, FOREACH_TENSORS = 128, 65_536, 320, (110, 64, 48, 36, 30)
WITHOUT_KERNEL = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "detach",
    "lift_fresh",
    "_unsafe_view",
    "set_",
    "promote_types",
)
SHOWN = ("_to_copy", "mul", "add_")


class Operators(TorchDispatchMode):
    """Counts what starts kernels while it is entered: `calls` by the operator's name, and `launches` in all."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in WITHOUT_KERNEL and not _makes_view(func):
            self.calls[name] += 1
            self.launches += _launches(name, args)
        return made


class OutsideGraphs(Operators):
    """Counts beside what is compiled, which otherwise is not called under such a count."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


def _makes_view(func: Any) -> bool:
    aliases = [made.alias_info for made in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _launches(name: str, arguments: Any) -> int:
    lists = [argument for argument in arguments if isinstance(argument, list | tuple) and len(tree_leaves(argument)) > 1]
    if name == "cat":
        return math.ceil(len(arguments[0]) / CAT_TENSORS)
    if not (name.startswith("_foreach") or name.startswith("_fused")) or not lists:
        return 1
    depth = min(len(lists) + (not name.endswith("_")), len(FOREACH_TENSORS))  # one more list that is made
    chunks = sum(math.ceil(tensor.numel() / FOREACH_CHUNK) for tensor in lists[0])
    return max(math.ceil(len(lists[0]) / FOREACH_TENSORS[depth - 1]), math.ceil(chunks / FOREACH_CHUNKS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fp32 alone: a try")
    is_quick = parser.parse_args().quick
    logging.disable(logging.WARNING)  # open_clip says that random weights are random
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
    findings: list[Finding] = []
    details: dict[str, Any] = {"batch_size": BATCH_SIZE, "dataset": DATASET, "model": MODEL}
    for precision in ("fp32",) if is_quick else ("fp32", "bf16"):
        counted = {consolidates: step_operators(precision, consolidates=consolidates) for consolidates in (False, True)}
        with_it, without = counted[True], counted[False]
        findings += [
            Finding(what=f"{precision}: operators of a step", value=with_it.calls.total(), unit=""),
            Finding(what=f"{precision}: launches of a step", value=with_it.launches, unit=""),
            Finding(what=f"{precision}: operators more than without AWC", value=with_it.calls.total() - without.calls.total(), unit=""),
            Finding(what=f"{precision}: launches more than without AWC", value=with_it.launches - without.launches, unit=""),
            *(Finding(what=f"{precision}: {name}", value=with_it.calls[name], unit="") for name in SHOWN),
        ]
        details[precision + " total"] = with_it.calls.total()
        details[precision] = dict(with_it.calls.most_common())
        findings += compiled_findings(precision, details)
    report("step_operators", findings, details, is_quick=is_quick)


def step_operators(precision: Precision, *, consolidates: bool = True) -> Operators:
    """Those of the second step: the first also makes the optimizer's moments."""
    tokenizer, manifests, config = open_clip.get_tokenizer(MODEL), Manifests(), open_clip.get_model_config(MODEL)
    prompts = tokenizer(manifests.task(DATASET).first_template_captions)
    captions = tokenizer(manifests.task("imagenet").first_template_captions[:BATCH_SIZE])
    caption_ids = torch.arange(BATCH_SIZE)
    trees = {(len(texts), None): split_tree(build_prefix_tree(texts, texts.argmax(dim=1)), None) for texts in (prompts, captions)}
    with FakeTensorMode(allow_non_fake_inputs=True), _as_on_a_gpu():
        student = KnownTexts(open_clip.CLIP(**config).eval(), None, precision)
        student.known = trees
        training, task, replay = gift_training(student, prompts, captions, caption_ids, consolidates=consolidates)
        training_step(training, task, replay)
        with Operators() as counted:
            training_step(training, task, replay)
    return counted


def compiled_findings(precision: Precision, details: dict[str, Any]) -> list[Finding]:
    """What the host asks for in a step with --compile-step, and what it makes graphs of over NUM_BATCHES batches."""
    tokenizer, manifests = open_clip.get_tokenizer(MODEL), Manifests()
    prompts = tokenizer(manifests.task(DATASET).first_template_captions)
    captions = tokenizer(manifests.task("imagenet").first_template_captions)
    drawn = torch.Generator().manual_seed(0)
    with _as_on_a_gpu(), _graphs_out_of_sight() as calls:
        student = Backbone(narrow_clip(), None, precision)
        training, task, replay = gift_training(student, prompts, captions[:BATCH_SIZE], torch.arange(BATCH_SIZE))
        training = replace(training, compiled=CompiledLosses(training.method, student, SINGLE))
        before = num_graphs()
        for _ in range(NUM_BATCHES):
            chosen = captions[torch.randint(len(captions), (BATCH_SIZE,), generator=drawn)]
            training_step(training, task, replace(replay, tokens=student.trim(chosen)))
        num_made, calls[:] = num_graphs() - before, []
        plain = replace(training, compiled=None)
        counted = {}
        for name, one in (("plain", plain), ("compiled", training)):
            with OutsideGraphs() as counted[name]:
                training_step(one, task, replay)
    assert counted["plain"].calls.total() == details[precision + " total"], "the narrow model's step is not that of the model"
    details[f"{precision}, --compile-step"] = dict(counted["compiled"].calls.most_common())
    return [
        Finding(what=f"{precision}, --compile-step: operators outside graphs", value=counted["compiled"].calls.total(), unit=""),
        Finding(what=f"{precision}, --compile-step: launches outside graphs", value=counted["compiled"].launches, unit=""),
        Finding(what=f"{precision}, --compile-step: graphs called in a step", value=len(calls), unit=""),
        Finding(what=f"{precision}, --compile-step: graphs made in {NUM_BATCHES} batches", value=num_made, unit=""),
    ]


def narrow_clip() -> torch.nn.Module:
    """As many layers and tensors as MODEL has."""
    config = open_clip.get_model_config(MODEL)
    vision, text = config["vision_cfg"] | {"width": 64, "head_width": 32, "image_size": 32}, config["text_cfg"] | {"width": 64, "heads": 2}
    return open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()


@contextmanager
def _graphs_out_of_sight() -> Iterator[list[None]]:
    """Graphs are traced and differentiated, and run where no operator is counted. Yields a list that grows by one with each call of one."""
    calls: list[None] = []

    def hidden(graph: Any, _: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(None)
            with _disable_current_modes():
                return graph(*arguments)

        return make_boxed_func(call)

    compiled, backend = torch.compile, aot_autograd(fw_compiler=hidden)
    with mock.patch.object(torch, "compile", lambda function, *, mode=None, **told: compiled(function, backend=backend, **told)):
        yield calls


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Not in pieces of what a CPU's caches hold."""
    before, flat_tensors.CACHED_ENTRIES = flat_tensors.CACHED_ENTRIES, 2**62
    try:
        yield
    finally:
        flat_tensors.CACHED_ENTRIES = before


if __name__ == "__main__":
    main()
