"""A step of GIFT+ against one of GIFT: same weights, same batches, in turns. Its budget is 1.3 times GIFT's (docs/experiments.md).

python benchmarks/gift_plus.py [--quick] [--device cuda]
"""

import argparse
import logging
import statistics
from dataclasses import asdict

import torch
from measure import Finding, report, times_each
from training_step import Batches, Case, OurStep, paper_gift

from gift_train.methods.gift_plus import GiftPlus

BUDGET = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ViT-B/32, 2 + 2 images: a try, not a measurement")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: bf16, 64 + 64 images")
    parser.add_argument("--rounds", type=int, help="timed steps of each: 6 on a CPU, 40 on a GPU")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip says that random weights are random
    torch.manual_seed(0)
    is_on_gpu = arguments.device != "cpu"
    model = "ViT-B-32-quickgelu" if arguments.quick else "ViT-B-16-quickgelu"
    batch_size = 2 if arguments.quick else 64 if is_on_gpu else 8
    rounds = arguments.rounds or (40 if is_on_gpu else 6)
    findings = [finding for num_classes in (10, 100) for finding in compared(model, num_classes, batch_size, arguments.device, rounds)]
    report("gift_plus", findings, {"batch_size": batch_size}, is_quick=arguments.quick, device=arguments.device)


def compared(model: str, num_classes: int, batch_size: int, device: str, rounds: int) -> list[Finding]:
    """Both with their share of the teacher's pass over the synthetic images."""
    case = Case(model=model, num_classes=num_classes, batch_size=batch_size, device=device)
    data, gift = Batches(case), paper_gift()
    ours = GiftPlus(GiftPlus.Config(**asdict(gift.config), task_distill_weight=1.0))
    steps = {"gift": OurStep(case, data, method=gift), "gift_plus": OurStep(case, data, method=ours)}
    taken = {name: [time + steps[name].teacher_seconds for time in times] for name, times in times_each(steps, rounds=rounds).items()}
    ratios = [one / other for one, other in zip(taken["gift_plus"], taken["gift"], strict=True)]
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    ratio = seconds["gift_plus"] / seconds["gift"]
    return [
        *(Finding(what=f"{case.shown}: {name}", value=value, unit="s/step") for name, value in seconds.items()),
        Finding(what=f"{case.shown}: ratio", value=ratio, unit="x", target=BUDGET, at_most=True, low=min(ratios), high=max(ratios)),
    ]


if __name__ == "__main__":
    main()
