"""Operators of a training step at full size, counted: what a GPU's host has to ask for. Nothing is computed, and no GPU is needed.

python benchmarks/step_operators.py [--quick]

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
from typing import Any

import open_clip
import torch
from measure import Finding, report
from step_memory import BATCH_SIZE, DATASET, KnownTexts, gift_training
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gift_shared.manifests import Manifests
from gift_train.clip import flat_tensors
from gift_train.clip.model import Precision
from gift_train.clip.prefix_tree import build_prefix_tree, split_tree
from gift_train.training.loop import training_step

MODEL = "ViT-B-16-quickgelu"
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
        details[precision] = dict(with_it.calls.most_common())
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
