"""The parts of gpu_check, each in a process of its own: `python benchmarks/device_parts.py PART [--device cuda] [--quick]`.

A part prints what it found as a JSON object on its last line: findings (what, value, unit, bound) and `faults`, a line for everything
that is wrong. Correctness parts have bounds; the others measure, and have none.
"""

import argparse
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from generation import plain_images, plain_pipeline, sd15_rows
from killed_run import command, killed_in_second_task, largest_difference, weights
from measure import Finding, seconds_each
from products import best_rate, count_flops, synchronise
from sd15 import save_random_sd15
from streaming import FULL_MODEL, FULL_PIXELS, photo, shard_pass, write_pool
from training_step import Batches, Case, OurStep, PlainStep, largest_gradient_difference

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden/parity"
LOSS_BOUND, GRADIENT_BOUND = 1e-3, 2e-3  # fp32 on a device, of a loss and of a gradient's largest entry: the sums have another order
COMPILED_BOUNDS = {"fp32": 1e-3, "bf16": 2e-2}  # of a step's loss: kernels that are fused round at other places
CURVE_BOUND = 0.05  # bf16 against fp32: mean difference of a step's loss, as a share of it
PSNR_BOUNDS = {"float16": 35.0, "bfloat16": 30.0}  # dB against float32; on a CPU bfloat16 reaches 51
RESUME_SLACK = 2.0  # a resumed run may be so many times as far from an uninterrupted one as a second uninterrupted one is
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass
class Outcome:
    """What a part found."""

    findings: list[Finding] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def measured(self, what: str, value: float, unit: str) -> None:
        self.findings.append(Finding(what=what, value=value, unit=unit))

    def bounded(self, what: str, value: float, unit: str, bound: float, *, at_most: bool = True) -> None:
        """A value that must keep its bound; what is not finite does not."""
        finding = Finding(what=what, value=value, unit=unit, target=bound, at_most=at_most)
        self.findings.append(finding)
        if not math.isfinite(value) or finding.verdict != "met":
            self.faults.append(f"{what}: {value:.3g} {unit}, the bound is {finding.shown_target}")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part runs and how much of it."""

    device: str
    is_quick: bool

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def case(self, num_classes: int = 100) -> Case:
        """The training step that is measured: ViT-B/16, 64 + 64 images; a try takes a ViT-B/32 and 2 + 2."""
        model = "ViT-B-32-quickgelu" if self.is_quick else "ViT-B-16-quickgelu"
        return Case(
            model=model, num_classes=10 if self.is_quick else num_classes, batch_size=2 if self.is_quick else 64, device=self.device
        )

    def small_case(self) -> Case:
        """What two sides are compared on value by value."""
        return Case(model="ViT-B-32-quickgelu", num_classes=10, batch_size=2 if self.is_quick else 16, device=self.device)


def golden(place: Place) -> Outcome:
    """Golden numbers of the published code in float32: all variants, through method objects and step of training."""
    from gift_train.parity.bounds import bounds_on
    from gift_train.parity.replay import FIRST_LOSS_ONLY, check_fixture

    outcome, device = Outcome(), torch.device(place.device)
    results = list(check_fixture(GOLDEN, device))
    outcome.faults = [f"variant {result.name} disagrees ({result.note})" for result in results if not result.agrees]
    held = [result for result in results if result.name not in FIRST_LOSS_ONLY]
    bounds = bounds_on(device)
    outcome.bounded("largest loss difference", max(result.loss_difference or 0.0 for result in held), "", bounds.loss)
    outcome.bounded("99th percentile of weights", max(result.weight_difference or 0.0 for result in held), "", bounds.weight)
    outcome.measured("variants that agree", sum(result.agrees for result in results), f"of {len(results)}")
    return outcome


def fast_paths(place: Place) -> Outcome:
    """Our step against the plain one in fp32: loss terms of three steps, gradients of the first."""
    outcome, case = Outcome(), place.small_case()
    data = Batches(case)
    plain, ours = PlainStep(case, data), OurStep(case, data, "fp32")
    plain(), ours()
    gradient = largest_gradient_difference(plain.training.parameters, ours.training.parameters)
    for _ in range(2):
        plain(), ours()
    differences = [abs(one[name] - other[name]) for one, other in zip(plain.losses, ours.losses, strict=True) for name in one]
    outcome.bounded("loss terms against plain code", max(differences), "", LOSS_BOUND)
    outcome.bounded("gradients against plain code", gradient, "of largest", GRADIENT_BOUND)
    return outcome


def loss_curves(place: Place) -> Outcome:
    """50 steps in bf16 beside 50 in fp32, from the same weights on the same batches."""
    outcome, case = Outcome(), place.small_case()
    data = Batches(case)
    steps = {precision: OurStep(case, data, precision) for precision in ("fp32", "bf16")}
    for _ in range(5 if place.is_quick else 50):
        for step in steps.values():
            step()
    curves = {name: [sum(terms.values()) for terms in step.losses] for name, step in steps.items()}
    shares = [abs(one - other) / other for one, other in zip(curves["bf16"], curves["fp32"], strict=True)]
    outcome.bounded("bf16 loss curve against fp32, mean", statistics.mean(shares), "of the loss", CURVE_BOUND)
    outcome.measured("bf16 loss curve against fp32, worst step", max(shares), "of the loss")
    outcome.details["losses"] = curves
    return outcome


def resume(place: Place) -> Outcome:
    """A run of the mini world that is killed inside its second task and goes on, beside two that are left alone."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = folder / "plan.parquet"
        command("gift_mini.tasks", "--out", folder / "data")
        command("gift_generate.cli", "plan", "--order", "mini", "--images-per-task", 8, "--steps", 2, "--out", plan)
        command("gift_generate.cli", "render", "--plan", plan, "--out", folder / "shards", "--device", place.device)
        steps = 12 if place.is_quick else 40

        def words(out: str) -> list[object]:
            told = {"steps": steps - 1, "warmup_steps": 4, "checkpoint_every": 4, "evaluation_batch_size": 256}
            places = ("--shards", folder / "shards", "--data-root", folder / "data", "--out", folder / out, "--device", place.device)
            settings = [word for key, value in told.items() for word in ("--set", f"{key}={value}")]
            return ["gift_train.cli", "run", "--method", "gift", "--stop-after", 2, *places, *settings]

        command(*words("first"))
        command(*words("second"))
        num_kills = killed_in_second_task(words("resumed"), folder / "resumed")
        command(*words("resumed"))
        handed_on = {out: weights(folder / out) for out in ("first", "second", "resumed")}
    repeated = largest_difference(handed_on["first"], handed_on["second"])
    resumed = largest_difference(handed_on["first"], handed_on["resumed"])
    outcome.measured("kills inside the second task", num_kills, "")
    outcome.measured("two uninterrupted runs differ by", repeated, "largest weight")
    outcome.bounded("resumed run differs by", resumed, "largest weight", RESUME_SLACK * repeated)
    if not num_kills:
        outcome.faults.append("the run was over before it could be killed inside its second task")
    return outcome


def rendering(place: Place) -> Outcome:
    """Half precision against float32 on the mini Stable Diffusion: finite, and how near."""
    from gift_generate.rendering.factory import open_renderer
    from gift_generate.rendering.model_options import ModelOptions
    from gift_generate.rendering.renderer import RenderJob
    from gift_shared.manifests import Manifests

    outcome = Outcome()
    captions = Manifests().task("mini_digits").first_template_captions[: 4 if place.is_quick else 8]
    jobs = [RenderJob(caption, number, 3.0, 12) for number, caption in enumerate(captions)]
    rendered = {}
    for dtype in ("float32", *(PSNR_BOUNDS if place.is_gpu else ("bfloat16",))):
        renderer = open_renderer(ModelOptions(model="mini", device=place.device, dtype=dtype, batch_size=len(jobs)))
        rendered[dtype] = renderer.render(jobs)
    for dtype, images in rendered.items():
        if not all(image.is_finite for image in images):
            outcome.faults.append(f"{dtype}: an image is not finite")
        if dtype != "float32":
            ratio = psnr([image.pixels for image in images], [image.pixels for image in rendered["float32"]])
            outcome.bounded(f"{dtype} pictures against float32", ratio, "dB PSNR", PSNR_BOUNDS[dtype], at_most=False)
    return outcome


def gpu_tests(place: Place) -> Outcome:
    """The tests that are marked `gpu`, which docs/speed.md lists."""
    outcome = Outcome()
    choice = [] if place.is_gpu else ["--collect-only"]  # a CPU can only show that they are found
    line = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfE", *choice, str(ROOT / "tests")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    print(done.stdout[-3000:])
    if done.returncode:
        outcome.faults = [shown for shown in done.stdout.splitlines() if shown.startswith(("FAILED", "ERROR"))] or [done.stderr[-300:]]
    outcome.details["last line"] = done.stdout.strip().splitlines()[-1]
    return outcome


def training(place: Place) -> Outcome:
    """GIFT's step, the plain procedure in fp32 against ours in bf16, and the share of the rate that matrix products reach."""
    outcome, case = Outcome(), place.case()
    data = Batches(case)
    plain, ours = PlainStep(case, data), OurStep(case, data, "bf16" if place.is_gpu else "fp32")
    seconds = seconds_each({"plain": plain, "ours": ours}, rounds=1 if place.is_quick else 10, warmup=1 if place.is_quick else 8)
    step = seconds["ours"] + ours.teacher_seconds
    rate = best_rate(case.batch_size * 197, 768, 3072, case.device, torch.bfloat16 if place.is_gpu else torch.float32)
    flops = count_flops(ours)
    outcome.measured(f"{case.shown}: plain fp32", seconds["plain"], "s/step")
    outcome.measured(f"{case.shown}: ours", step, "s/step")
    outcome.measured(f"{case.shown}: ratio", seconds["plain"] / step, "x")
    outcome.measured("matrix products at", rate / 1e12, "TFLOP/s")
    outcome.measured("share of that rate in our step", 100 * flops / rate / step, "%")
    if place.is_gpu:
        outcome.measured("peak memory of both sides", torch.cuda.max_memory_allocated() / 1e9, "GB")
    del plain
    outcome.details["profile"] = profile(ours, place, outcome)
    return outcome


def compiled(place: Place) -> Outcome:
    """Our step with --compile-step beside ours without: the same losses, and how long both take."""
    from gift_train.training.compiled_losses import num_graphs  # which imports torch's compiler

    outcome, case = Outcome(), place.case()
    data = Batches(case)
    steps = {"ours": OurStep(case, data), "--compile-step": OurStep(replace(case, compiles_step=True), data)}
    # Batches come back in turns: each graph is made, recorded and replayed before a step is timed.
    seconds = seconds_each(steps, rounds=1 if place.is_quick else 10, warmup=3 if place.is_quick else 3 * case.num_batches)
    curves = {name: [sum(terms.values()) for terms in step.losses] for name, step in steps.items()}
    shares = [abs(one - other) / other for one, other in zip(curves["--compile-step"], curves["ours"], strict=True)]
    bound = COMPILED_BOUNDS["bf16" if place.is_gpu else "fp32"]
    outcome.bounded("largest difference of a step's loss", max(shares), "of the loss", bound)
    for name, taken in seconds.items():
        outcome.measured(f"{case.shown}: {name}, without the teacher", taken, "s/step")
    outcome.measured(f"{case.shown}: ratio", seconds["ours"] / seconds["--compile-step"], "x")
    outcome.bounded("graphs made", num_graphs(), "", 2, at_most=False)  # one of each loss at least
    outcome.details["profile"] = profile(steps["--compile-step"], place, outcome)
    return outcome


def profile(ours: OurStep, place: Place, outcome: Outcome) -> list[dict[str, Any]]:
    """One step under the profiler: kernels and time on the device, the host's time until all of it is asked for, and its waits."""
    synchronise(place.device)
    started = time.perf_counter()
    ours.enqueue()
    asked = time.perf_counter() - started
    synchronise(place.device)
    with torch.profiler.profile() as profiler:
        ours.enqueue()
        synchronise(place.device)
    rows = profiler.key_averages()
    counts = {row.key: row.count for row in rows}
    operators = [row for row in rows if row.device_type == torch.autograd.DeviceType.CPU and row.key.startswith("aten::")]
    outcome.measured("host time of a step", asked, "s")
    outcome.measured("operator calls of a step", sum(row.count for row in operators), "")
    if place.is_gpu:
        outcome.measured("kernel launches of a step", sum(counts.get(name, 0) for name in LAUNCHES), "")
        outcome.measured("time on the device", sum(row.self_device_time_total for row in operators) / 1e6, "s")
        outcome.measured("waits of the host in a step", max(0, sum(counts.get(name, 0) for name in WAITS) - 1), "")  # one is ours
    spent = {row.key: (row.self_device_time_total if place.is_gpu else row.self_cpu_time_total) / 1e6 for row in operators}
    largest = sorted(spent.items(), key=lambda item: -item[1])[:20]
    return [{"operator": name, "seconds": round(seconds, 6), "calls": counts[name]} for name, seconds in largest]


def generation(place: Place) -> Outcome:
    """Stable Diffusion v1.5's architecture: one call an image against ours, with 50 and 25 steps, with and without safety checker."""
    from gift_generate.rendering.factory import open_renderer
    from gift_generate.rendering.model_options import ModelOptions
    from gift_generate.rendering.renderer import RenderJob

    outcome = Outcome()
    size = {} if place.is_gpu else {"height": 64, "width": 64}
    num_images, num_plain = (16, 3) if place.is_gpu else (2, 1)
    dtype = "float16" if place.is_gpu else "float32"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_random_sd15(folder / "model", has_safety_checker=True)
        open_with = ModelOptions(model=str(folder / "model"), device=place.device, dtype=dtype, batch_size=num_images, **size)
        for steps in (50, 25) if not place.is_quick else (2, 1):
            jobs = [RenderJob(row["caption"], row["sample_seed"], 7.5, steps) for row in sd15_rows(num_images, steps)]
            if place.is_gpu or steps == 2:
                pipeline = plain_pipeline(folder / "model", steps, place.device)
                plain_rate = rate_of(partial(plain_images, pipeline, sd15_rows(num_plain, steps), folder, **size), num_plain, place)
                outcome.measured(f"SD v1.5, {steps} steps: one call an image, with safety checker", plain_rate, "images/s")
                del pipeline
            for checker in ("on", "off"):
                if place.is_gpu:
                    torch.cuda.reset_peak_memory_stats()
                renderer = open_renderer(ModelOptions(**{**vars(open_with), "safety_checker": checker}))
                rate = rate_of(partial(renderer.render, jobs), num_images, place)
                shown = f"SD v1.5, {steps} steps, batch {num_images}, safety checker {checker}"
                outcome.measured(f"{shown}: ours", rate, "images/s")
                if place.is_gpu:
                    outcome.measured(f"{shown}: peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB")
                del renderer
    return outcome


def processes(place: Place) -> Outcome:
    """Two processes on one device, gradients summed by gloo as several ranks would: as far as one device goes."""
    outcome = Outcome()
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
        "rank",
        "--device",
        place.device,
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        outcome.faults.append(f"two processes ended with {done.returncode}: {done.stderr.strip().splitlines()[-1][:300]}")
        return outcome
    found = json.loads(next(text for text in done.stdout.splitlines() if text.startswith("{")))
    outcome.bounded("gradients of two processes against one", found["difference"], "", 1e-6)
    return outcome


def rank(place: Place) -> None:
    """What `processes` starts twice: each takes its share of the rows, and gloo sums the gradients."""
    import torch.distributed as dist

    from gift_train.distributed import Ranks

    dist.init_process_group("gloo")
    number, size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(number, size, torch.device(place.device))
    torch.manual_seed(0)
    rows, weight = torch.randn(6, 4, device=place.device), torch.randn(4, 4, device=place.device, requires_grad=True)
    alone = torch.autograd.grad(((rows @ weight) ** 2).sum(), weight)[0]
    weight.grad = torch.autograd.grad(((rows[ranks.share(6)] @ weight) ** 2).sum(), weight)[0]
    gradients = weight.grad.clone()
    dist.all_reduce(gradients)
    if number == 0:
        print(json.dumps({"difference": float((gradients - alone).abs().max() / alone.abs().max())}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def loader(place: Place, step_seconds: float | None) -> Outcome:
    """512-pixel JPEGs of shards to batches of 224 pixels by so many processes; where a step would wait for them."""
    outcome = Outcome()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        contents = [photo(number, FULL_PIXELS) for number in range(64 if place.is_quick else 256)]
        rows = write_pool(Path(name), contents, num_shards=4)
        counts = [count for count in (0, 2, 4, 8, 16) if count <= (2 if place.is_quick else cores)]
        for count in counts:
            one_pass = shard_pass(Path(name), rows, FULL_MODEL, count, cache_bytes=0)
            started = time.perf_counter()
            images = one_pass()
            outcome.measured(f"loader, {count} processes", images / (time.perf_counter() - started), "images/s")
    if step_seconds is not None:
        outcome.measured("a step of 64 + 64 needs", 128 / step_seconds, "images/s")
        rates = {count: finding.value for count, finding in zip(counts, outcome.findings, strict=False)}
        enough = [count for count, found in rates.items() if found >= 128 / step_seconds]
        outcome.details["enough processes"] = min(enough, default=None)
    return outcome


def rate_of(call: Callable[[], Any], num_images: int, place: Place) -> float:
    """Images a second of a call, after one that warms up."""
    if place.is_gpu:
        call()
    synchronise(place.device)
    started = time.perf_counter()
    call()
    synchronise(place.device)
    return num_images / (time.perf_counter() - started)


def psnr(images: Sequence[Any], others: Sequence[Any]) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures, in dB; 99 for equal ones."""
    import numpy as np

    squares = [((one.astype(float) - other.astype(float)) ** 2).mean() for one, other in zip(images, others, strict=True)]
    error = float(np.mean(squares))
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


PARTS: dict[str, Callable[[Place], Outcome]] = {
    part.__name__: part
    for part in (golden, fast_paths, loss_curves, resume, rendering, gpu_tests, training, generation, processes, compiled)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "loader", "rank"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--step-seconds", type=float, help="of a training step, for the loader's need")
    arguments = parser.parse_args()
    place = Place(device=arguments.device, is_quick=arguments.quick)
    if arguments.part == "rank":
        rank(place)
        return
    logging.disable(logging.WARNING)  # open_clip says that random weights are random
    torch.manual_seed(0)
    outcome = loader(place, arguments.step_seconds) if arguments.part == "loader" else PARTS[arguments.part](place)
    findings = [finding.record() for finding in outcome.findings]
    print(json.dumps({"findings": findings, "faults": outcome.faults, "details": outcome.details}))


if __name__ == "__main__":
    main()
