"""Replay a fixture of golden numbers through the code that training runs: the method objects and `loop.train_steps`."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gift_shared.errors import DataError
from gift_train.clip.load import backbone_from_tensors
from gift_train.clip.model import Backbone
from gift_train.data.batches import ImageStream, TaskBatch, place_replay, place_task
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource, TextSource
from gift_train.distributed import CPU
from gift_train.methods.base import TaskContext
from gift_train.methods.registry import method_class
from gift_train.parity.bounds import bounds_on, percentile_99
from gift_train.parity.condu import ConduReplay
from gift_train.parity.fixture import Fixture, locate, read_fixture, read_tensors, telling
from gift_train.parity.moe_adapter import AdapterReplay, is_adapter_fixture
from gift_train.parity.rail import RailReplay, is_rail_fixture
from gift_train.recipes.typed_table import parse_table
from gift_train.training.loop import TermRecorder, Training, build_optimizer, train_steps

EARLIER_TASKS = {"gnsp": 1, "gnsp_two": 2}  # of the fixture's images, which changed no weight and left behind what a method keeps
FIRST_LOSS_ONLY = ("gift_no_alignment",)  # student = teacher at step 0: its gradient is rounding noise, which AdamW blows up

_FIXED_TEXT = {"distill_weight": 1.0, "temperature": 2.0}
_GIFT: dict[str, Any] = {
    "distillation": "contrastive",
    "distill_weight": 1.0,
    "temperature": 2.0,
    "teacher": "last",
    "alignment_weight": 0.25,
    "weight_consolidation": "none",
}
_MEMORY = {"teacher": "last", "memory_size": 8, "herding_candidates": 8, "quota": "even"}
_SND = {"last_weight": 9.0, "initial_weight": 0.5, "threshold": 0.2, "scale": 6.0}
_GNSP = {"distill_weight": 1.0, "temperature": 2.0, "alignment_weight": 0.75, "tail_share": 0.15}
_SND_EVEN = {"last_weight": 1.0, "initial_weight": 1.0, "threshold": 0.05, "scale": 20.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("finetune", {}),
    "l2": ("l2", {"weight": 1.0}),
    "lwf": ("lwf", _FIXED_TEXT),
    "lwf_vr": ("lwf_vr", _FIXED_TEXT),
    "wise_ft": ("wise_ft", {"alpha": 0.8, "anchor": "previous"}),
    "zscl": ("zscl", _FIXED_TEXT | {"l2_weight": 1.0, "average_every": 2}),
    "icarl": ("icarl", _FIXED_TEXT | _MEMORY),
    "gift": ("gift", _GIFT | {"weight_consolidation": "adaptive", "consolidation_weight": 1.0}),
    "gift_without_awc": ("gift", _GIFT),
    "gift_plain_l2": ("gift", _GIFT | {"weight_consolidation": "plain-l2", "consolidation_weight": 1.0}),
    "gift_image_only": ("gift", _GIFT | {"distillation": "image-only"}),
    "gift_text_only": ("gift", _GIFT | {"distillation": "text-only"}),
    "gift_feature_distance": ("gift", _GIFT | {"distillation": "feature-distance"}),
    "gift_no_alignment": ("gift", _GIFT | {"alignment_weight": 0.0}),
    "gift_alignment_1": ("gift", _GIFT | {"alignment_weight": 1.0}),
    "gift_teacher_initial": ("gift", _GIFT | {"teacher": "initial"}),
    "gift_teacher_wise_0.2": ("gift", _GIFT | {"teacher": "wise", "teacher_alpha": 0.2}),
    "gift_teacher_wise_0.5": ("gift", _GIFT | {"teacher": "wise", "teacher_alpha": 0.5}),
    "snd": ("snd", _SND),
    "snd_even": ("snd", _SND_EVEN),
    "snd_batch": ("snd", _SND | {"selection": "batch"}),
    "snd_batch_even": ("snd", _SND_EVEN | {"selection": "batch"}),
    "gnsp": ("gnsp", _GNSP),
    "gnsp_two": ("gnsp", _GNSP | {"tail_share": 0.05}),
    "condu": ("condu", {"num_nearest": 1}),
}


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """How far one variant is from the golden numbers. `loss_difference` is None where the fixture holds no losses."""

    name: str
    loss_difference: float | None
    weight_difference: float | None  # 99th percentile over the probe; None if the method is not built
    agrees: bool
    note: str = ""


def check_fixture(path: Path, device: torch.device = CPU) -> Iterator[VariantResult]:
    """Replay every variant of a fixture, or of all fixtures of a folder, one after the other; in float32 on `device`.

    Raises: DataError or ConfigError for a bad fixture.
    """
    folder = sorted(file for file in path.glob("*.safetensors") if file.with_suffix(".json").is_file()) if path.is_dir() else []
    for file in folder or [path]:
        tensors_file, numbers_file = locate(file)
        tensors, numbers = read_fixture(tensors_file, numbers_file)
        if is_adapter_fixture(tensors):
            with telling(tensors_file):
                result = _check_adapters(AdapterReplay(tensors, numbers, str(tensors_file), device))
            yield result
            continue
        if is_rail_fixture(tensors):
            with telling(tensors_file):
                inputs = read_tensors(tensors_file.parent / str(numbers.get("inputs")))
                result = _check_rail(RailReplay(inputs | tensors, numbers, str(tensors_file), device))
            yield result
            continue
        fixture = Fixture(file)
        for name in fixture.golden:
            with telling(tensors_file):
                result = _check_variant(fixture, name, device)
            yield result


def _check_adapters(replay: AdapterReplay) -> VariantResult:
    feature_difference = replay.feature_difference()
    loss_difference = replay.train()
    weight_differences = replay.weight_differences()
    weight_difference = max(map(percentile_99, weight_differences))  # of each kind: a wrong gate is less than 1 % of all
    bounds = bounds_on(replay.student.device)
    within = feature_difference <= bounds.feature and loss_difference <= bounds.loss and weight_difference <= bounds.weight
    counts = "equal" if replay.counts_agree() else "DIFFERENT"
    worst = max(float(differences.max()) for differences in weight_differences)
    return VariantResult(
        name="moe_adapter",
        loss_difference=loss_difference,
        weight_difference=weight_difference,
        agrees=within and replay.counts_agree(),
        note=f"features {feature_difference:.1e} of {bounds.feature:.0e}, expert counts {counts}, worst weight {worst:.1e}",
    )


def _check_condu(replay: ConduReplay) -> VariantResult:
    found = replay.differences()
    return VariantResult(
        name="condu",
        loss_difference=found.loss,
        weight_difference=found.delta,
        agrees=found.agree(bounds_on(replay.device)),
        note=found.told(),
    )


def _check_rail(replay: RailReplay) -> VariantResult:
    score_difference, weight_differences = replay.differences()
    weight_difference, bounds = percentile_99(weight_differences), bounds_on(replay.student.device)
    return VariantResult(
        name="rail",
        loss_difference=None,
        weight_difference=weight_difference,
        # Theirs come of a single-precision recursion: 3e-6 from the exact solution, where AdamW's weights are known to 1e-7.
        agrees=score_difference <= bounds.feature and weight_difference <= bounds.feature,
        note=f"weights of {bounds.feature:.0e}, the worst {float(weight_differences.max()):.1e}; scores {score_difference:.1e} of the same",
    )


def _check_variant(fixture: Fixture, name: str, device: torch.device = CPU) -> VariantResult:
    if name not in VARIANTS:
        absent = {"loss_difference": None, "weight_difference": None}
        return VariantResult(name=name, agrees=False, note="not built", **absent)
    if name == "condu":
        return _check_condu(ConduReplay(fixture, device))
    losses, weights = replay_variant(fixture, name, device)
    bounds = bounds_on(device)
    golden = [float(row["loss"]) for row in fixture.golden[name].get("losses", [])]
    if golden and len(golden) != len(losses):
        raise DataError(f"{fixture.path}: variant {name!r} has {len(golden)} losses for {len(losses)} batches.")
    differences = [abs(ours - theirs) for ours, theirs in zip(losses, golden, strict=False)]
    flat = torch.cat([weights[parameter].flatten() for parameter in sorted(weights)])[:: fixture.stride]
    probe = fixture.tensor(f"final_probe/{name}")
    if probe.shape != flat.shape:
        raise DataError(f"{fixture.path}: 'final_probe/{name}' holds {len(probe)} values, stride {fixture.stride} gives {len(flat)}.")
    weight_difference = percentile_99((flat - probe).abs())
    if name in FIRST_LOSS_ONLY and differences:
        agrees, note = differences[0] <= bounds.loss, f"only its first loss is held: {differences[0]:.2e}"
    else:
        agrees, note = max(differences, default=0.0) <= bounds.loss and weight_difference <= bounds.weight, ""
    return VariantResult(
        name=name,
        loss_difference=max(differences, default=None),
        weight_difference=weight_difference,
        agrees=agrees,
        note=note if golden else "the fixture holds no losses",
    )


def replay_variant(fixture: Fixture, name: str, device: torch.device = CPU) -> tuple[list[float], dict[str, Tensor]]:
    """Train the variant on the fixture's batches, on `device`.

    Returns: every step's total loss, and what is handed on, logit_scale included, on the CPU.
    """
    method_name, settings = VARIANTS[name]
    chosen = method_class(method_name)
    method = chosen(parse_table(chosen.Config, settings, f"variant {name}"))
    student = backbone_from_tensors(fixture.weights("previous"))
    student.network.to(device)
    num_steps = len(fixture.tensor("task_images"))
    num_earlier = EARLIER_TASKS.get(name, 1)
    context = TaskContext(
        task_name=name,
        task_index=num_earlier,
        num_steps=num_steps,
        label_smoothing=fixture.label_smoothing,
        class_tokens=student.trim(fixture.tensor("class_tokens")),
        reference_tokens=_reference_tokens(fixture, student, chosen.texts),
        initial_weights=fixture.weights("initial"),
        replay_pass=None,
        task_images=lambda _: (_task_batch(fixture, student, step) for step in range(num_steps)),
        own_images=ImageStream(batches_per_epoch=1, take=lambda _: iter([fixture.tensor("task_images").flatten(0, 1).to(student.device)])),
    )
    method.prepare(student, num_tasks=num_earlier + 1)
    for index in range(num_earlier if name in EARLIER_TASKS else 0):
        method.begin_task(dataclasses.replace(context, task_index=index), student)
        method.end_task(student)
    method.begin_task(context, student)
    parameters = method.trainable(student)
    training = Training(
        method=method,
        student=student,
        parameters=parameters,
        optimizer=build_optimizer(parameters, fixture.optimizer),
        schedule=fixture.schedule,
    )
    batches = ((_task_batch(fixture, student, step), _replay_batch(fixture, student, chosen.replay, step)) for step in range(num_steps))
    recorder = TermRecorder(name)
    for step, terms in train_steps(training, batches):
        recorder.add(step, terms)
    method.end_task(student)
    losses = [sum(values.values()) for _, values in recorder.flush()]
    return losses, {key: tensor.detach().cpu() for key, tensor in student.network.state_dict().items()}


def _task_batch(fixture: Fixture, student: Backbone, step: int) -> TaskBatch:
    return place_task(TaskBatch(images=fixture.tensor("task_images")[step], labels=fixture.tensor("task_labels")[step]), student)


def _replay_batch(fixture: Fixture, student: Backbone, source: ReplaySource, step: int) -> ReplayBatch | None:
    if source == ReplaySource.NONE:
        return None
    if source == ReplaySource.SYNTHETIC:
        captions = fixture.tensor("synthetic_captions")[step]
        return place_replay(_as_batch(fixture.tensor("synthetic_images")[step], captions, fixture.tensor("caption_tokens")), student)
    images = fixture.tensor("task_images")[step]
    if source == ReplaySource.MEMORY:
        memory = fixture.tensor("memory_images")
        parts = memory.split(len(images))
        images = parts[step % len(parts)]
    return place_replay(_as_batch(images, torch.arange(len(images)), torch.zeros(len(images), 1, dtype=torch.long)), student)


def _as_batch(images: Tensor, captions: Tensor, caption_tokens: Tensor) -> ReplayBatch:
    places: dict[int, int] = {}
    ids = torch.tensor([places.setdefault(caption, len(places)) for caption in captions.tolist()])
    names = tuple(str(caption) for caption in captions.tolist())
    return ReplayBatch(images=images, captions=names, tokens=caption_tokens[captions], caption_ids=ids, sample_keys=names)


def _reference_tokens(fixture: Fixture, student: Backbone, texts: TextSource) -> Tensor | None:
    names = {TextSource.CLASSES: "class_tokens", TextSource.RANDOM: "random_tokens", TextSource.CAPTIONS: "caption_tokens"}
    return student.trim(fixture.tensor(names[texts])) if texts in names else None
