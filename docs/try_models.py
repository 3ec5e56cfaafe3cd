"""Tries every kind of model that open_clip names and writes what holds into docs/model_families.md: python docs/try_models.py

A kind is what decides the code that runs: the build of both towers, where a text is read, a logit bias, a decoder. The model with the
smallest image of a kind stands for it, its towers small, with random weights. timm's image towers are built whole, but EVA-01's: a small
one of the same class takes its place. One step of training is made with each of three methods, and all that is said was computed.
"""

import copy
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_train.clip import towers
from gift_train.clip.model import Backbone
from gift_train.clip.model_config import build
from gift_train.clip.transformers_export import obstacle
from gift_train.data.batches import TaskBatch
from gift_train.data.replay import ReplayBatch
from gift_train.methods.base import Method, TaskContext
from gift_train.methods.registry import method_class
from gift_train.recipes.recipe import OptimizerSettings, load_recipe
from gift_train.training.loop import Schedule, Training, build_optimizer, train_steps

PAGE = Path(__file__).with_name("model_families.md")
SMALL_VISION = {"width": 64, "head_width": 16, "layers": 2}
SMALL_TEXT = {"vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
HUGGING_FACE = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ENCODER_DECODER = {f"{half}_{size}": value for half in ("encoder", "decoder") for size, value in
                   {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
HF_TOWERS: dict[str, Callable[[], Any]] = {
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**HUGGING_FACE, max_position_embeddings=514, pad_token_id=1),
    "roberta": lambda: transformers.RobertaConfig(**HUGGING_FACE, max_position_embeddings=514, pad_token_id=1),
    "mt5": lambda: transformers.MT5Config(
        vocab_size=100, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    ),
    "nllb": lambda: transformers.M2M100Config(
        vocab_size=100, d_model=32, pad_token_id=1, max_position_embeddings=90, **ENCODER_DECODER
    ),
}  # fmt: skip
SMALLER_IN_TIMM = {"eva_giant_patch14_224": "eva02_tiny_patch14_224"}  # of the same class


@dataclass(frozen=True, order=True)
class Kind:
    """What decides the code that runs."""

    image: str
    text: str
    extra: str = ""


@dataclass
class Tried:
    """What was seen of a kind."""

    names: list[str]
    stands_for: str
    difference: float
    trains: dict[str, str] = field(default_factory=dict)  # method -> "yes", or why not
    image_path: str = ""
    text_path: str = ""
    exports: str = ""


def main() -> None:
    PAGE.write_text(page([(kind, tried(kind, names)) for kind, names in kinds().items()]), encoding="utf-8")
    print(PAGE)


def kinds() -> dict[Kind, list[str]]:
    """All names of open_clip by kind."""
    found: dict[Kind, list[str]] = {}
    for name in open_clip.list_models():
        config: dict[str, Any] = open_clip.get_model_config(name)
        found.setdefault(kind_of(config), []).append(name)
    return dict(sorted(found.items()))


def kind_of(config: dict[str, Any]) -> Kind:
    vision, text = config["vision_cfg"], config["text_cfg"]
    if vision.get("timm_model_name"):
        image = "timm " + re.split(r"[_.]", vision["timm_model_name"])[0].rstrip("0123456789")
    elif isinstance(vision.get("layers"), list):
        image = "ResNet"
    else:
        image = "ViT" + (", attentional pooling" if vision.get("attentional_pool") else ", mean pooling" if vision.get("pool_type") else "")
    if text.get("hf_model_name"):
        words = "transformers " + next(kind for kind in HF_TOWERS if kind in text["hf_model_name"])
    else:
        read_at = {"last": "read at the last token", "eos": "read at the end token's id"}.get(text.get("pool_type", ""), "read at the end")
        words = ("without mask, " if text.get("no_causal_mask") else "causal, ") + read_at
    bias = "logit bias" if config.get("init_logit_bias") is not None else ""
    decoder = "CoCa's decoder" if "multimodal_cfg" in config else ""
    return Kind(image, words, bias or decoder)


def tried(kind: Kind, names: list[str]) -> Tried:
    """Everything about one kind, by one of its models."""
    name = min(names, key=lambda one: (image_side(one), "quickgelu" in one, one))
    print(f"{kind.image} | {kind.text} | {kind.extra}: {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        network: Any = small(name, Path(folder))
        backbone = Backbone(network, None)
        images = torch.randn(4, 3, *[backbone.image_settings[0]] * 2)
        tokens = token_rows(kind, open_clip.get_model_config(name)["text_cfg"].get("context_length", 77))
        with torch.no_grad():
            pairs = (
                (backbone.encode_images(images), network.encode_image(images)),
                (backbone.encode_texts(backbone.trim(tokens)), network.encode_text(tokens)),
            )
            differences = [float((ours - torch.nn.functional.normalize(theirs, dim=-1)).abs().max()) for ours, theirs in pairs]
        found = Tried(names=names, stands_for=name, difference=max(differences))
        found.image_path = "fast" if towers.can_read_images(network) else "open_clip's own"
        found.text_path = "prefix tree" if towers.can_read_texts(network) else "open_clip's own"
        found.exports = (
            obstacle(Backbone(network, open_clip.SimpleTokenizer(), config={"model_cfg": small_config(name), "preprocess_cfg": {}}))
            or "yes"
        )
        recipes = ["finetune", "gift", *(["gift_sigmoid"] if kind.extra == "logit bias" else []), "moe_adapter"]
        for recipe in recipes:
            found.trains[recipe] = trained(recipe, copy.deepcopy(network), images, tokens)
    return found


def image_side(name: str) -> int:
    size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else max(size))


def small_config(name: str) -> dict[str, Any]:
    """The configuration with few and narrow layers; its switches are its own."""
    config: dict[str, Any] = copy.deepcopy(open_clip.get_model_config(name))
    vision = config["vision_cfg"]
    if vision.get("timm_proj") not in ("none", ""):  # else features are as wide as the whole tower
        config["embed_dim"] = 32
    if isinstance(vision.get("layers"), list):
        config["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    elif not vision.get("timm_model_name"):
        patch = 16 if vision.get("patch_size", 16) <= 16 else vision["patch_size"]
        config["vision_cfg"] = vision | SMALL_VISION | {"patch_size": patch, "image_size": 4 * patch}
        if vision.get("attentional_pool"):
            config["vision_cfg"]["attn_pooler_heads"] = 2
    else:
        vision["timm_model_name"] = SMALLER_IN_TIMM.get(vision["timm_model_name"], vision["timm_model_name"])
    if not config["text_cfg"].get("hf_model_name"):
        config["text_cfg"] |= SMALL_TEXT
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= SMALL_TEXT | {"attn_pooler_heads": 2}
    return config


def small(name: str, folder: Path) -> torch.nn.Module:
    """Its network with random weights, none of them 0."""
    config = small_config(name)
    if (tower := config["text_cfg"].get("hf_model_name")) is not None:
        HF_TOWERS[next(kind for kind in HF_TOWERS if kind in tower)]().save_pretrained(folder)
        config["text_cfg"]["hf_model_name"] = str(folder)
    torch.manual_seed(0)
    network = build({"model_cfg": config})
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def token_rows(kind: Kind, length: int) -> Tensor:
    """Four texts of two to five words: start, words, end, padding."""
    padding = 1 if kind.extra == "logit bias" or "id" in kind.text or ("transformers" in kind.text and "mt5" not in kind.text) else 0
    end = 2 if padding == 1 else 99
    rows = torch.full((4, length), padding)
    for row, num_words in zip(rows, (2, 3, 4, 5), strict=True):
        row[: num_words + 2] = torch.tensor([98, *range(10, 10 + num_words), end])
    return rows


def trained(recipe_name: str, network: torch.nn.Module, images: Tensor, tokens: Tensor) -> str:
    """One step of a method: "yes" if its loss is finite and every trained weight has a gradient, else what is wrong."""
    without = ["method_config.selector.features=none"] if recipe_name == "moe_adapter" else []  # its images would be another network's
    recipe = load_recipe(recipe_name, "mtil", without)
    method: Method = method_class(recipe.method)(recipe.method_config)
    student = Backbone(network, None)
    try:
        method.check_model(student)
        method.prepare(student, 2)
        replay = ReplayBatch(
            images=images, captions=tuple("abcd"), tokens=student.trim(tokens), caption_ids=torch.arange(4), sample_keys=tuple("abcd")
        )
        method.begin_task(context(recipe.label_smoothing, student, tokens), student)
        training = Training(
            method=method,
            student=student,
            parameters=method.trainable(student),
            optimizer=build_optimizer(method.trainable(student), OptimizerSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)),
            schedule=Schedule(peak=1e-5, warmup_steps=0, total_steps=1),
        )
        batch = TaskBatch(images=images, labels=torch.arange(4))
        [(_, terms)] = train_steps(training, iter([(batch, replay if recipe.replay is not None else None)]))
    except ConfigError as error:
        return f"refused: {error}"
    if not all(bool(torch.isfinite(term)) for term in terms.values()):
        return "no: a loss is not finite"
    missing = [name for name, parameter in training.parameters.items() if parameter.grad is None]
    return "yes" if not missing or recipe.method == "moe_adapter" else f"no: {missing[0]} has no gradient"


def context(label_smoothing: float, student: Backbone, tokens: Tensor) -> TaskContext:
    return TaskContext(
        task_name="trial",
        task_index=0,
        num_steps=1,
        label_smoothing=label_smoothing,
        class_tokens=student.trim(tokens),
        reference_tokens=None,
        initial_weights=student.weights_copy(),
        replay_pass=None,
        task_images=lambda _: iter(()),
    )


def page(found: list[tuple[Kind, Tried]]) -> str:
    """The page, from nothing but what was tried."""
    return HEAD.format(num_models=sum(len(one.names) for _, one in found), num_kinds=len(found)) + "".join(rows(found)) + notes(found)


HEAD = """# Models that were tried

Made by `python docs/try_models.py`: the {num_models} models that open_clip names, in the {num_kinds} kinds that differ in the code that
runs. One model stands for its kind, with small towers (timm's image towers whole) and random weights. *Same* is the largest difference of a
normalised feature from open_clip's own forward pass. *Trains*: one step of `finetune`, `gift` and `moe_adapter` has a finite loss,
and every weight that the first two train gets a gradient; for models with a logit bias `gift_sigmoid` too. What
"no" means stands below the table. *As `CLIPModel`*: whether the network has transformers' form; the tokenizer is looked at when a run is
exported. How each is given: [Which models](models.md).

| image tower | text tower | | models | same | image path | text path | finetune | gift | moe_adapter | as `CLIPModel` |
|---|---|---|---|---:|---|---|---|---|---|---|
"""


def rows(found: list[tuple[Kind, Tried]]) -> Iterator[str]:
    for number, (kind, one) in enumerate(found, start=1):
        shown = f"{one.stands_for}" + (f" and {len(one.names) - 1} more" if len(one.names) > 1 else "")
        gift = one.trains["gift"] if one.trains.get("gift_sigmoid", "yes") == "yes" else one.trains["gift_sigmoid"]
        verdicts = [one.trains["finetune"], gift, one.trains["moe_adapter"], one.exports]
        words = ["yes" if verdict == "yes" else f"no ({number})" for verdict in verdicts]
        cells = [kind.image, kind.text, kind.extra, shown, f"{one.difference:.0e}", one.image_path, one.text_path, *words]
        yield f"| {' | '.join(cells)} |\n"


def notes(found: list[tuple[Kind, Tried]]) -> str:
    """Why not, and all names of a kind."""
    lines = ["\n## Why not, and which models a kind has\n"]
    for number, (kind, one) in enumerate(found, start=1):
        lines.append(f"\n**{number}. {kind.image}; {kind.text}{'; ' + kind.extra if kind.extra else ''}.** {', '.join(one.names)}.\n")
        told = {f"`{recipe}` is {verdict.rstrip('.')}." for recipe, verdict in one.trains.items() if verdict != "yes"}
        told |= {f"No `CLIPModel`: {one.exports.rstrip('.')}."} if one.exports != "yes" else set()
        lines += [f"- {line}\n" for line in sorted(told)]
    return "".join(lines)


if __name__ == "__main__":
    main()
