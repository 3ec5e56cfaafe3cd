"""Our training step against the published one written plainly: same random weights, same batches, in turns.

python benchmarks/training_step.py [--quick] [--compile] [--device cuda]

Ours are the trainer's own objects: Backbone, Gift, its optimizer and `loop.training_step`. To the seconds of our step its share of the
teacher's pass over the synthetic images is added, which a task does once. On a GPU ours runs in bf16 and the plain one in fp32, and
the step is set against the time that its matrix products alone would take at the rate measured in the same run.
"""

import argparse
import copy
import itertools
import json
import logging
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from measure import Finding, in_own_process, peak_gigabytes, report, seconds_each, times_each
from plain_training import PlainGift, PlainSettings
from products import best_rate, count_flops, synchronise
from torch import Tensor

from gift_shared.manifests import Manifests
from gift_train.clip.load import load_backbone
from gift_train.clip.model import Backbone, Precision
from gift_train.data.batches import TaskBatch, place_replay, place_task
from gift_train.data.replay import ReplayCollate
from gift_train.distributed import SINGLE
from gift_train.methods.base import LossTerms, Method, TaskContext
from gift_train.methods.gift import Gift
from gift_train.recipes.recipe import OptimizerSettings
from gift_train.training.loop import Schedule, Training, build_optimizer, training_step
from gift_train.training.step_losses import compiled_losses

PAPER_IMAGES, PAPER_STEPS = 1000, 1001  # synthetic images and steps of a task (METHODS 1.7)
LEARNING_RATE = 1e-5
SCHEDULE = Schedule(peak=LEARNING_RATE, warmup_steps=100, total_steps=PAPER_STEPS - 1)
DATASETS = {10: "eurosat", 37: "oxford_pet", 100: "aircraft", 397: "sun397"}  # by number of classes
MOST_CLASSES = 397  # the plain step needs some 30 GB for them, which the CPU machines here do not have: there ours is timed alone
PLAIN_MEMORY = (10, 37)  # numbers of classes at which the plain step's memory is measured and from which it is extrapolated


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is timed: a model, a number of classes, B real and B synthetic images, with adaptive weight consolidation or without."""

    model: str
    num_classes: int
    batch_size: int
    device: str
    consolidates: bool = True
    compiles: bool = False  # ours, as the next three
    compiles_step: bool = False
    micro_batch_size: int | None = None
    recomputes_blocks: bool = False

    @property
    def shown(self) -> str:
        shown = f"{self.model.removesuffix('-quickgelu')}, {self.num_classes} classes{'' if self.consolidates else ', without AWC'}"
        return shown + (", --compile-step" if self.compiles_step else ", --compile" if self.compiles else "")

    @property
    def num_batches(self) -> int:
        """How many both sides go through in turns. On a GPU a step is short: so many that shapes change, as in a run."""
        return 3 if self.device == "cpu" else 8

    @property
    def warmup(self) -> int:
        """Untimed steps. On a GPU until memory is laid out for all batches; compiled, until there is code for all of them."""
        return 1 if self.device == "cpu" and not (self.compiles or self.compiles_step) else self.num_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ViT-B/32, 2 + 2 images: a try, not a measurement")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: bf16, 64 + 64 images")
    parser.add_argument("--compile", action="store_true", help="measure --compile and --compile-step too: minutes more")
    parser.add_argument(
        "--readme", action="store_true", help="what README claims: the first model with AWC, 10 and 100 classes, and memory"
    )
    parser.add_argument("--rounds", type=int, help="timed steps of each side: 2 on a CPU, 20 on a GPU")
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "CASE"), help="what a measured process runs")
    parser.add_argument("--time", metavar="CASE", help="likewise")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip says that random weights are random
    torch.manual_seed(0)
    if arguments.memory:
        side, case = arguments.memory
        print(json.dumps(memory(side, Case(**json.loads(case)))))
        return
    if arguments.time:
        case = Case(**json.loads(arguments.time))
        measure = timed_alone if case.num_classes == MOST_CLASSES and case.device == "cpu" else timed
        case_findings, case_details = measure(case, arguments.rounds)
        print(json.dumps({"findings": [vars(finding) for finding in case_findings], "details": case_details}))
        return
    rounds = arguments.rounds or (2 if arguments.device == "cpu" else 20)
    batch_size = 2 if arguments.quick else 64 if arguments.device == "cuda" else 8
    details: dict[str, Any] = {"batch_size": batch_size, "threads": torch.get_num_threads()}
    findings: list[Finding] = []
    chosen = cases(arguments.quick, arguments.device, batch_size, measures_compiled=arguments.compile)
    for case in itertools.islice(readme_cases(chosen), 2) if arguments.readme else chosen:
        found = in_own_process(__file__, "--rounds", str(rounds), "--time", json.dumps(vars(case)))
        findings += [Finding(**finding) for finding in found["findings"]]
        details[case.shown] = found["details"]
    findings += memory_findings(arguments.device, batch_size, details, is_quick=arguments.quick)
    report("training_step", findings, details, is_quick=arguments.quick, device=arguments.device)


def cases(is_quick: bool, device: str, batch_size: int, *, measures_compiled: bool) -> Iterator[Case]:
    """What is timed on this device."""
    models = ("ViT-B-32-quickgelu",) if is_quick else ("ViT-B-16-quickgelu", "ViT-B-32-quickgelu")
    for model in models:
        for num_classes, consolidates in itertools.product((10, 100) if is_quick else (10, 100, MOST_CLASSES), (True, False)):
            yield Case(model=model, num_classes=num_classes, batch_size=batch_size, device=device, consolidates=consolidates)
    for num_classes in (10, 100) if measures_compiled else ():
        for flags in ({"compiles": True}, {"compiles_step": True}):
            yield Case(model=models[0], num_classes=num_classes, batch_size=batch_size, device=device, **flags)


def readme_cases(chosen: Iterator[Case]) -> Iterator[Case]:
    """Those with AWC whose plain step fits, the first model's first: 10 and 100 classes."""
    return (case for case in chosen if case.consolidates and case.num_classes < MOST_CLASSES)


def timed(case: Case, rounds: int) -> tuple[list[Finding], dict[str, Any]]:
    """Both steps in turns, their agreement, the matrix products' share of ours, and where the rest of it goes."""
    data = Batches(case)
    plain, ours = PlainStep(case, data), OurStep(case, data)
    # The widest product of the image tower, in the type that ours runs in.
    products = best_rate(case.batch_size * 197, 768, 3072, case.device, torch.float32 if case.device == "cpu" else torch.bfloat16)
    plain(), ours()
    gradient_difference = largest_gradient_difference(plain.training.parameters, ours.training.parameters)
    taken = times_each({"plain": plain, "ours": ours}, rounds=rounds, warmup=case.warmup - 1)
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    ratios = [one / (other + ours.teacher_seconds) for one, other in zip(taken["plain"], taken["ours"], strict=True)]
    loss_difference = max(abs(one[name] - other[name]) for one, other in zip(plain.losses, ours.losses, strict=True) for name in one)
    details: dict[str, Any] = {"losses": {"plain": plain.losses[:], "ours": ours.losses[:]}, "seconds": seconds}
    floor = count_flops(ours) / products
    step = seconds["ours"] + ours.teacher_seconds
    details |= {"teacher_seconds_a_step": ours.teacher_seconds, "products_gflops": products / 1e9, "floor_seconds": floor}
    details |= {"operators": operators(ours)}
    is_on_gpu = case.device != "cpu"
    has_target = case.model.startswith("ViT-B-16") and case.consolidates and (is_on_gpu or not (case.compiles or case.compiles_step))
    target = (8.0 if is_on_gpu else 1.5 if case.num_classes == 10 else 2.5) if has_target else None
    findings = [
        Finding(what=f"{case.shown}: plain", value=seconds["plain"], unit="s/step"),
        Finding(what=f"{case.shown}: ours", value=step, unit="s/step"),
        Finding(what=f"{case.shown}: ratio", value=seconds["plain"] / step, unit="x", target=target, low=min(ratios), high=max(ratios)),
        Finding(
            what=f"{case.shown}: share of the floor", value=100 * floor / step, unit="%", target=40.0 if has_target and is_on_gpu else None
        ),
        Finding(what=f"{case.shown}: largest loss difference", value=1e6 * loss_difference, unit="1e-6"),
        Finding(what=f"{case.shown}: largest gradient difference", value=1e6 * gradient_difference, unit="1e-6 rel."),
    ]
    return findings, details


def timed_alone(case: Case, rounds: int) -> tuple[list[Finding], dict[str, Any]]:
    """Our step where the plain one does not fit."""
    ours = OurStep(case, Batches(case))
    seconds = seconds_each({"ours": ours}, rounds=rounds)["ours"]
    details = {"losses": {"ours": ours.losses}, "seconds": {"ours": seconds}, "teacher_seconds_a_step": ours.teacher_seconds}
    return [Finding(what=f"{case.shown}: ours", value=seconds + ours.teacher_seconds, unit="s/step")], details


class Batches:
    """Real class prompts, captions drawn with repeats from the thousand ImageNet prompts, and noise for images; the same for both sides."""

    def __init__(self, case: Case) -> None:
        manifests = Manifests()
        self.prompts = manifests.task(DATASETS[case.num_classes]).first_template_captions
        captions = manifests.task("imagenet").first_template_captions
        size = case.batch_size
        drawn = torch.randint(len(captions), (case.num_batches, size)).tolist()
        for rows in drawn:
            rows[-1] = rows[0]  # a batch with a repeat, as nearly every one of 64 has
        self.backbone = load_backbone(case.model, "random", case.device)
        side = self.backbone.image_settings[0]
        self.backbone.micro_batch_size = case.micro_batch_size
        collate = ReplayCollate(self.backbone.tokenize, self.backbone.tree_maker)  # as loader processes make them, outside the step
        self.replay = [
            collate([(torch.randn(3, side, side), captions[caption], f"{step}-{row}") for row, caption in enumerate(rows)])
            for step, rows in enumerate(drawn)
        ]
        labels = torch.randint(case.num_classes, (case.num_batches, size))
        self.task = [TaskBatch(images=torch.randn(size, 3, side, side), labels=labels[step]) for step in range(case.num_batches)]

    @property
    def distinct_captions(self) -> Tensor:
        """[N, L], as methods that look at all captions of a task are given them."""
        return self.backbone.trim(torch.cat([batch.tokens for batch in self.replay]).unique(dim=0))

    def network(self) -> Any:
        """The same initial weights for whoever asks."""
        return copy.deepcopy(self.backbone.network)


class PlainStep:
    """One call, one step of the published procedure, on the next batch."""

    def __init__(self, case: Case, data: Batches) -> None:
        self.device = case.device
        tokens = data.backbone.tokenize(data.prompts).to(case.device)
        settings = PlainSettings(consolidation_weight=1.0 if case.consolidates else 0.0)
        self.training = PlainGift(data.network(), tokens, SCHEDULE.learning_rate, settings)
        self.batches = [
            (task.images.to(case.device), task.labels.to(case.device), replay.images.to(case.device), replay.tokens.to(case.device))
            for task, replay in zip(data.task, data.replay, strict=True)
        ]
        self.losses: list[dict[str, float]] = []

    def __call__(self) -> None:
        terms = self.training.step(*self.batches[len(self.losses) % len(self.batches)])
        self.losses.append({name: float(term) for name, term in terms.items()})


class OurStep:
    """One call, one step of the trainer on the next batch, its terms read as the loop reads them when they are due.

    precision: of the towers; bf16 on a GPU and fp32 elsewhere unless given. method: GIFT as published unless given.
    """

    def __init__(self, case: Case, data: Batches, precision: Precision | None = None, method: Method | None = None) -> None:
        student = Backbone(data.network(), data.backbone.tokenizer, precision or ("fp32" if case.device == "cpu" else "bf16"))
        if case.compiles or case.compiles_step:
            student.compile_blocks()
        if case.recomputes_blocks:
            student.recompute_blocks()
        student.micro_batch_size = case.micro_batch_size
        self.batches = [
            (place_task(task, student), place_replay(replay, student)) for task, replay in zip(data.task, data.replay, strict=True)
        ]
        method = paper_gift(consolidates=case.consolidates) if method is None else method
        context = TaskContext(
            task_name="benchmark",
            task_index=0,
            num_steps=PAPER_STEPS,
            label_smoothing=0.2,
            class_tokens=student.trim(student.tokenize(data.prompts)),
            reference_tokens=data.distinct_captions,
            initial_weights={},
            replay_pass=lambda: (replay for _, replay in self.batches),
            task_images=lambda _: iter(()),
        )
        for _ in range(2):  # the second time is what it takes: the first also loads kernels, compiles and lays out memory
            synchronise(case.device)
            started = time.perf_counter()
            method.begin_task(context, student)
            synchronise(case.device)
        per_image = (time.perf_counter() - started) / (case.num_batches * case.batch_size)
        self.teacher_seconds = per_image * PAPER_IMAGES / PAPER_STEPS
        parameters = method.trainable(student)
        settings = OptimizerSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)
        optimizer = build_optimizer(parameters, settings)
        compiled = compiled_losses(method, student, SINGLE) if case.compiles_step else None
        self.training = Training(
            method=method, student=student, parameters=parameters, optimizer=optimizer, schedule=SCHEDULE, compiled=compiled
        )
        self.losses: list[dict[str, float]] = []

    def __call__(self) -> None:
        self.losses.append({name: float(term) for name, term in self.enqueue().items()})

    def enqueue(self) -> LossTerms:
        """The step that is due, its terms not read: on a GPU the host does not wait for it."""
        step = len(self.losses)
        self.training.optimizer.param_groups[0]["lr"] = SCHEDULE.learning_rate(step)
        return training_step(self.training, *self.batches[step % len(self.batches)])


def paper_gift(*, consolidates: bool = True) -> Gift:
    """With the paper's settings, or without its consolidation."""
    return Gift(
        Gift.Config(
            distillation="contrastive",
            distill_weight=1.0,
            temperature=2.0,
            teacher="last",
            alignment_weight=0.25,
            weight_consolidation="adaptive" if consolidates else "none",
            consolidation_weight=1.0 if consolidates else None,
        )
    )


def largest_gradient_difference(plain: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> float:
    """Over all parameters, the largest difference of a gradient's entry as a share of that gradient's largest entry."""
    differences = []
    for name, parameter in plain.items():
        gradient, other = parameter.grad, ours[name].grad
        assert gradient is not None
        assert other is not None
        differences.append(float((gradient - other).abs().max() / gradient.abs().max().clamp_min(1e-30)))
    return max(differences)


def operators(ours: OurStep) -> list[dict[str, Any]]:
    """Where a step's time goes: the operators that take most of it, with their own seconds."""
    with torch.profiler.profile() as profile:
        ours()
    # Operators, not the kernels they start, which are rows of their own and counted in their operator's device time.
    rows = [row for row in profile.key_averages() if row.device_type == torch.autograd.DeviceType.CPU]
    is_on_gpu = any(row.self_device_time_total for row in rows)
    spent = {row.key: (row.self_device_time_total if is_on_gpu else row.self_cpu_time_total) / 1e6 for row in rows}
    total = sum(spent.values())
    largest = sorted(spent.items(), key=lambda item: -item[1])[:15]
    return [{"operator": name, "seconds": round(seconds, 4), "share": round(seconds / total, 3)} for name, seconds in largest]


def memory_findings(device: str, batch_size: int, details: dict[str, Any], *, is_quick: bool) -> list[Finding]:
    """Peak memory of each side, each in a process of its own; the plain one's at 397 classes from two smaller measurements."""
    model = "ViT-B-32-quickgelu" if is_quick else "ViT-B-16-quickgelu"

    def peak(side: str, num_classes: int) -> float:
        case = Case(model=model, num_classes=num_classes, batch_size=batch_size, device=device)
        return float(in_own_process(__file__, "--memory", side, json.dumps(vars(case)))["peak_gb"])

    ours = peak("ours", MOST_CLASSES)
    fewer, more = PLAIN_MEMORY
    plain = {num_classes: peak("plain", num_classes) for num_classes in PLAIN_MEMORY}
    per_class = (plain[more] - plain[fewer]) / (more - fewer)
    details["peak_gb"] = {"ours": {MOST_CLASSES: ours}, "plain": plain}
    shown, limit = model.removesuffix("-quickgelu"), 10.0 if device == "cpu" else None
    extrapolated = plain[more] + (MOST_CLASSES - more) * per_class
    return [
        Finding(what=f"{shown}, {MOST_CLASSES} classes: ours, peak", value=ours, unit="GB", target=limit, at_most=True),
        Finding(what=f"{shown}, {more} classes: plain, peak", value=plain[more], unit="GB"),
        Finding(what=f"{shown}, {MOST_CLASSES} classes: plain, peak, extrapolated", value=extrapolated, unit="GB"),
    ]


def memory(side: str, case: Case) -> dict[str, float]:
    """Two steps of one side (the first makes the optimizer's moments) and the most memory they held, in GB."""
    data = Batches(case)
    step = PlainStep(case, data) if side == "plain" else OurStep(case, data)
    for _ in range(2):
        step()
    return {"peak_gb": peak_gigabytes() if case.device == "cpu" else torch.cuda.max_memory_allocated() / 1e9}


if __name__ == "__main__":
    main()
