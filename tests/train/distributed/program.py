"""One rank's part in the tests beside it; run by path, in as many processes as a test wants: python program.py OUT.

Writes OUT/rank-<rank>.safetensors: `train/<variant>/...` losses and weights after training, the rest what `Ranks` gave back.
"""

import sys
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from gift_shared.manifests import TaskManifest
from gift_train.clip import prefix_tree
from gift_train.clip.model import Backbone
from gift_train.data.batches import TaskBatch
from gift_train.data.replay import ReplayBatch
from gift_train.data.sources import ReplaySource
from gift_train.distributed import init_distributed
from gift_train.distributed.gradients import GradientSum
from gift_train.methods.base import TaskContext
from gift_train.methods.registry import method_class
from gift_train.parity.replay import VARIANTS
from gift_train.recipes.recipe import OptimizerSettings, load_recipe
from gift_train.recipes.typed_table import parse_table
from gift_train.training.loop import Schedule, TermRecorder, Training, build_optimizer, train_steps

WIDTH, NUM_CLASSES = 64, 5
COLOURS = TaskManifest(
    name="colours", display_name="Colours", class_names=tuple("abcde"), templates=("{}",), data=None, counts={}, about=""
)  # fmt: skip
SMALL_BATCHES = {3: 1, 9: 2}  # at these steps: the end of an epoch, also with fewer images than ranks
OPTIMIZER = OptimizerSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1)
_MIXTURE = {"num_experts": 5, "top_k": 2, "bottleneck": 8, "expert_scale": 0.5, "dropout": 0.3, "gate_noise": 1.0}
_SELECTOR = load_recipe("moe_adapter", "mini").as_table()["method_config"]["selector"] | {"features": "none"}
_MOE = {"mixture": _MIXTURE, "selector": _SELECTOR, "routing": "batch", "balance_weight": 0.0}
METHODS = {name: VARIANTS[name] for name in ("finetune", "l2", "lwf", "lwf_vr", "wise_ft", "zscl", "icarl", "gift")}
METHODS |= {name: VARIANTS[name] for name in ("gift_text_only", "gift_image_only", "gift_feature_distance")}
METHODS |= {
    "gift_sigmoid": ("gift", VARIANTS["gift"][1] | {"contrastive_loss": "sigmoid"}),
    "gift_plus": ("gift_plus", VARIANTS["gift"][1] | {"task_distill_weight": 1.0}),
    "gift_static_fisher": ("gift", VARIANTS["gift"][1] | {"fisher_steps": 5}),
    "rail": ("rail", {"hidden_width": 20, "ridge": 0.1, "regression_share": 0.8}),
    "moe_adapter": ("moe_adapter", _MOE),
    "moe_adapter_balanced": ("moe_adapter", _MOE | {"balance_weight": 0.1}),
    "condu": VARIANTS["condu"],
}
LONG = ("gift", "zscl", "moe_adapter")  # of 20 steps; the others have 6
IN_MICRO_BATCHES = ("gift", "moe_adapter_balanced")
REMEMBERED = ("gift", "zscl")  # the teacher looks its features up; elsewhere it computes them


def small_clip():
    torch.manual_seed(3)
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=WIDTH, layers=2, head_width=32)
    text = open_clip.CLIPTextCfg(context_length=10, vocab_size=50, width=WIDTH, heads=2, layers=2)
    network = open_clip.CLIP(16, vision, text, quick_gelu=True, init_logit_bias=-3.0).eval()  # a bias, which softmax does not see
    return Backbone(network, lambda texts, context_length: prompts(len(texts), 95))


def prompts(count, seed):
    tokens = torch.randint(1, 40, (count, 6), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0], tokens[:, -1] = 48, 49
    return tokens


def pictures(count, seed):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def task_batch(step, ranks):
    size = SMALL_BATCHES.get(step, 7)
    return TaskBatch(images=pictures(size, step)[ranks.share(size)], labels=torch.arange(step, step + size) % NUM_CLASSES)


def replay_batch(step, ranks, size=6):
    """Pictures and captions from a pool of twelve pictures and four captions; captions repeat in a batch."""
    chosen = torch.randperm(12, generator=torch.Generator().manual_seed(100 + step))[: SMALL_BATCHES.get(step, size)]
    places = {}
    ids = torch.tensor([places.setdefault(int(number) % 4, len(places)) for number in chosen])
    return ReplayBatch(
        images=pictures(12, 99)[chosen][ranks.share(len(chosen))],
        captions=tuple(f"caption {int(number) % 4}" for number in chosen),
        tokens=prompts(4, 98)[chosen % 4],
        caption_ids=ids,
        sample_keys=tuple(f"picture-{int(number)}" for number in chosen),
    )


def whole_pass(ranks):
    """All twelve pictures, in order."""
    numbers = torch.arange(12)
    for part in numbers.split(5):
        yield ReplayBatch(
            images=pictures(12, 99)[part][ranks.share(len(part))],
            captions=tuple(f"caption {int(number) % 4}" for number in part),
            tokens=prompts(4, 98)[part % 4],
            caption_ids=torch.arange(len(part)),
            sample_keys=tuple(f"picture-{int(number)}" for number in part),
        )


def begin(variant, ranks, micro_batch_size=None, *, recomputes_blocks=False):
    """The training of a variant before its first step."""
    name, settings = METHODS[variant]
    num_steps = 20 if variant in LONG else 6
    chosen = method_class(name)
    method, student = chosen(parse_table(chosen.Config, settings, variant)), small_clip()
    student.micro_batch_size = micro_batch_size
    if recomputes_blocks:
        student.recompute_blocks()
    method.prepare(student, num_tasks=2)
    torch.manual_seed(17)
    with torch.no_grad():  # away from the zeros that experts and routers start with
        for parameter_name, parameter in student.network.named_parameters():
            if ".mixture." in parameter_name:
                parameter.normal_(std=0.3)
    context = TaskContext(
        task_name="colours",
        task_index=1,
        num_steps=num_steps,
        label_smoothing=0.2,
        class_tokens=prompts(NUM_CLASSES, 97),
        reference_tokens=prompts(9, 96),
        initial_weights={key: weight + 0.01 for key, weight in student.weights_copy().items()},
        replay_pass=(lambda: whole_pass(ranks)) if variant in REMEMBERED else None,
        task_images=lambda _: (task_batch(step, ranks) for step in range(4)),
        ranks=ranks,
        classes=COLOURS,
    )
    method.begin_task(context, student)
    parameters = method.trainable(student)
    return Training(
        method=method,
        student=student,
        parameters=parameters,
        optimizer=build_optimizer(parameters, OPTIMIZER),
        schedule=Schedule(peak=1e-4, warmup_steps=2, total_steps=num_steps),
        ranks=ranks,
    )


def batches(training):
    """What each step of the training sees."""
    replays, ranks = type(training.method).replay != ReplaySource.NONE, training.ranks
    for step in range(training.schedule.total_steps):
        yield task_batch(step, ranks), replay_batch(step, ranks) if replays else None


def train(variant, ranks, micro_batch_size=None, *, recomputes_blocks=False):
    """Losses by step and the weights handed on, by name, and what the method keeps."""
    training = begin(variant, ranks, micro_batch_size, recomputes_blocks=recomputes_blocks)
    method, student = training.method, training.student
    recorder = TermRecorder(variant)
    for step, terms in train_steps(training, batches(training)):
        recorder.add(step, terms)
    state = {f"state/{key}": tensor for key, tensor in method.state_dict().items()}
    method.end_task(student)
    state |= {f"state after/{key}": tensor for key, tensor in method.state_dict().items()}
    losses = torch.tensor([sum(values.values()) for _, values in recorder.flush()], dtype=torch.float64)
    return {"losses": losses, **{f"weights/{key}": tensor.detach() for key, tensor in student.network.state_dict().items()}, **state}


def gathered(num_rows, ranks):
    """A loss that mixes all rows; what gathering gives, and the gradient of a shared weight summed over ranks."""
    rows = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(num_rows))
    weight = torch.nn.Parameter(torch.eye(4))
    features = ranks.all_gather(rows[ranks.share(num_rows)] @ weight, num_rows)
    loss = (features @ features.T).softmax(dim=1).square().sum()
    with GradientSum(ranks, [weight], may_vary=True).during_backward():
        if loss.requires_grad:
            loss.backward()
    return {"rows": features.detach(), "loss": loss.detach(), "gradient": weight.grad}


def gradients_of_some(ranks):
    """Three parameters: no rank has a gradient of the first, one of the second, all of the third; one is there before the last pass."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    gradient_sum = GradientSum(ranks, parameters, may_vary=False)
    for _ in range(2):  # the second time it is known what travels
        for parameter in parameters:
            parameter.grad = None
        if ranks.rank == ranks.world_size - 1:
            parameters[1].grad = torch.tensor([1.0, 2.0])
        with gradient_sum.during_backward():
            (parameters[2] * float(ranks.rank)).sum().backward()
    return {f"gradient of {name}": parameter.grad for name, parameter in zip(("none", "one", "all"), parameters, strict=True)}


def talk(ranks):
    """What each of the other functions gives back here."""
    torch.manual_seed(ranks.rank)
    ranks.synchronize_rng()
    own = {"number": torch.tensor([5.0]), "empty": torch.empty(0), "counts": torch.tensor([[1, 2]])} if ranks.is_main else None
    found = {f"from main {name}": tensor for name, tensor in ranks.broadcast_tensors(own).items()}
    encoded = ranks.encode(lambda rows: rows * 2.0, torch.arange(10.0).unflatten(0, (5, 2)))
    return found | {
        "drawn": torch.rand(3),
        "object": torch.tensor(ranks.broadcast_object(lambda: 7 + ranks.rank)),
        "collected": torch.tensor(ranks.gather_object(ranks.rank * 10)),
        "any": torch.tensor([ranks.any_rank(ranks.rank == ranks.world_size - 1), ranks.any_rank(False)]),
        "sum": ranks.all_reduce(torch.tensor(ranks.rank + 1)),
        "encoded": encoded,
    }


def main(out):
    with init_distributed("cpu") as ranks:
        variants = METHODS if ranks.world_size == 2 else LONG
        found = {f"train/{variant}/{name}": tensor for variant in variants for name, tensor in train(variant, ranks).items()}
        prefix_tree.LONGEST_ROW = 8  # so that a handful of texts are several micro-batches
        for variant in IN_MICRO_BATCHES:
            found |= {f"train/{variant} in 2s/{name}": tensor for name, tensor in train(variant, ranks, 2, recomputes_blocks=True).items()}
        for num_rows in (1, 2, 7):
            found |= {f"gather {num_rows}/{name}": tensor for name, tensor in gathered(num_rows, ranks).items()}
        found |= {f"talk/{name}": tensor for name, tensor in (gradients_of_some(ranks) | talk(ranks)).items() if tensor is not None}
        save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, out / f"rank-{ranks.rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
