"""Memory of a training step with --micro-batch-size and --gradient-checkpointing, counted, and what they cost in time, measured.

python benchmarks/step_memory.py [--quick]

The bytes are those of a GIFT step at full size on tensors without data (FakeTensorMode): the trainer's own objects run as ever, every
operator's output is counted while it lives, and nothing is computed. The seconds are those of real steps on this CPU, in turns.
"""

import argparse
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import open_clip
import torch
from live_bytes import LiveBytes
from measure import Finding, report, seconds_each
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from training_step import LEARNING_RATE, SCHEDULE, Batches, Case, OurStep, paper_gift

from gift_shared.manifests import Manifests
from gift_train.clip.model import Backbone, Precision
from gift_train.clip.prefix_tree import SplitTree, build_prefix_tree, split_tree
from gift_train.data.batches import TaskBatch
from gift_train.data.replay import ReplayBatch
from gift_train.methods.base import TaskContext
from gift_train.recipes.recipe import OptimizerSettings
from gift_train.training.loop import Training, build_optimizer, training_step

BATCH_SIZE, NUM_CLASSES, DATASET = 64, 100, "aircraft"
MODELS = ("ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu")
SAVINGS: dict[str, tuple[int | None, bool]] = {
    "whole batch": (None, False),
    "--micro-batch-size 16": (16, False),
    "--gradient-checkpointing": (None, True),
    "--micro-batch-size 16, --gradient-checkpointing": (16, True),
}
TIMED = Case(model="ViT-B-32-quickgelu", num_classes=10, batch_size=8, device="cpu")
TIMED_SAVINGS: dict[str, tuple[int | None, bool]] = {
    "whole batch": (None, False),
    "micro-batches of 2 of 8": (2, False),
    "recomputed blocks": (None, True),
    "both": (2, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ViT-B/16 alone, timed on 4 + 4 images: a try, not a measurement")
    is_quick = parser.parse_args().quick
    logging.disable(logging.WARNING)  # open_clip says that random weights are random
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # of a deep copy, which asks whether it is null
    torch.manual_seed(0)
    findings: list[Finding] = []
    details: dict[str, Any] = {"batch_size": BATCH_SIZE, "num_classes": NUM_CLASSES, "threads": torch.get_num_threads()}
    for model in MODELS[:1] if is_quick else MODELS:
        for precision in ("fp32", "bf16"):
            findings += byte_findings(model, precision, details)
    findings += time_findings(details, is_quick=is_quick)
    report("step_memory", findings, details, is_quick=is_quick)


def byte_findings(model: str, precision: Precision, details: dict[str, Any]) -> list[Finding]:
    """Peak bytes of a step with each saving."""
    findings = []
    for name, saving in SAVINGS.items():
        held, peak = step_bytes(model, precision, *saving)
        shown = f"{model.removesuffix('-quickgelu')}, {precision}, {name}"
        details[shown] = {"between_steps_gb": held / 1e9, "peak_gb": peak / 1e9}
        findings.append(Finding(what=f"{shown}: peak", value=peak / 1e9, unit="GB"))
    return findings


class KnownTexts(Backbone):
    """Texts whose trees were made while tensors had data, found by how many there are: a tensor without data cannot be asked."""

    known: Mapping[tuple[int, int | None], SplitTree]

    def _prefix_tree(self, tokens: Tensor, max_rows: int | None = None) -> SplitTree:
        return self.known[len(tokens), max_rows]

    def frozen_copy(self) -> "KnownTexts":
        copied = KnownTexts(super().frozen_copy().network, None, self.precision)
        copied.known = self.known
        return copied


def step_bytes(model: str, precision: Precision, micro_batch_size: int | None, recomputes_blocks: bool) -> tuple[int, int]:
    """Bytes that are held between two steps, and the most during one: the second, as the first makes the optimizer's moments."""
    tokenizer, manifests, config = open_clip.get_tokenizer(model), Manifests(), open_clip.get_model_config(model)
    prompts = tokenizer(manifests.task(DATASET).first_template_captions)
    captions = tokenizer(manifests.task("imagenet").first_template_captions[:BATCH_SIZE])
    caption_ids, known = torch.arange(BATCH_SIZE), {}
    for texts in (prompts, captions):
        tree = build_prefix_tree(texts, texts.argmax(dim=1))
        known |= {(len(texts), max_rows): split_tree(tree, max_rows) for max_rows in {None, micro_batch_size}}
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        student = KnownTexts(open_clip.CLIP(**config).eval(), None, precision)
        student.known, student.micro_batch_size = known, micro_batch_size
        if recomputes_blocks:
            student.recompute_blocks()
        training, task, replay = gift_training(student, prompts, captions, caption_ids)
        training_step(training, task, replay)
        held, live.peak = live.now, live.now
        training_step(training, task, replay)
        return held, live.peak


def gift_training(
    student: Backbone, prompts: Tensor, captions: Tensor, caption_ids: Tensor, *, consolidates: bool = True
) -> tuple[Training, TaskBatch, ReplayBatch]:
    """The second task's training and what a step of it sees."""
    side = student.image_settings[0]
    task = TaskBatch(images=torch.empty(BATCH_SIZE, 3, side, side), labels=torch.zeros(BATCH_SIZE, dtype=torch.long))
    names = tuple(map(str, range(BATCH_SIZE)))
    images = torch.empty(BATCH_SIZE, 3, side, side)
    replay = ReplayBatch(images=images, captions=names, tokens=captions, caption_ids=caption_ids, sample_keys=names)
    method = paper_gift(consolidates=consolidates)
    context = TaskContext(
        task_name="benchmark",
        task_index=0,
        num_steps=1,
        label_smoothing=0.2,
        class_tokens=prompts,
        reference_tokens=None,
        initial_weights={},
        replay_pass=lambda: iter([replay]),
        task_images=lambda _: iter(()),
    )
    method.begin_task(context, student)
    parameters = method.trainable(student)
    optimizer = build_optimizer(parameters, OptimizerSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0))
    optimizer.param_groups[0]["lr"] = LEARNING_RATE
    return Training(method=method, student=student, parameters=parameters, optimizer=optimizer, schedule=SCHEDULE), task, replay


def time_findings(details: dict[str, Any], *, is_quick: bool) -> list[Finding]:
    """Seconds of a step with each saving, as a share of those of the whole batch at once."""
    case = replace(TIMED, batch_size=4) if is_quick else TIMED
    data = Batches(case)
    steps = {recomputes: OurStep(replace(case, recomputes_blocks=recomputes), data) for recomputes in (False, True)}

    def call(micro_batch_size: int | None, recomputes_blocks: bool) -> None:
        step = steps[recomputes_blocks]
        step.training.student.micro_batch_size = micro_batch_size
        step()

    seconds = seconds_each({name: partial(call, *saving) for name, saving in TIMED_SAVINGS.items()}, rounds=2)
    details["seconds"] = seconds
    whole = seconds["whole batch"]
    return [Finding(what=f"{case.shown}, {name}: time", value=taken / whole, unit="x") for name, taken in seconds.items()]


if __name__ == "__main__":
    main()
