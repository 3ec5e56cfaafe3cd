"""What makes two runs the same run: what a folder is bound to, and a resumed run compared by."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from gift_shared.scores import file_sha256
from gift_shared.storage import index_file
from gift_train.clip.description import MINI, decided_by_flag
from gift_train.clip.model import Backbone
from gift_train.clip.model_config import OPENAI_PREPROCESSING
from gift_train.clip.model_folder import CONFIG_FILE
from gift_train.data.reference_images import ReferenceTexts
from gift_train.data.score_rules import score_record
from gift_train.evaluation.beside import BesideListing
from gift_train.methods.base import Method
from gift_train.methods.method_files import method_code
from gift_train.options import RunOptions
from gift_train.records.checkpoint import checksum
from gift_train.records.identity import manifests_digest, tasks_digest
from gift_train.training.plan import RunPlan, uses_shards


def run_identity(plan: RunPlan, method: Method, texts: ReferenceTexts | None) -> dict[str, Any]:
    """What makes two runs the same run; the rest of run.json is circumstance."""
    options, recipe = plan.options, plan.recipe
    shards: dict[str, Any] | None = None
    if plan.shards is not None and uses_shards(plan, method):
        shards = {"path": str(plan.shards), "index_sha256": file_sha256(index_file(plan.shards))}
        if recipe.replay is not None and recipe.replay.by_score:
            shards["scores"] = score_record(plan.shards, recipe.replay.by_score)
    return {
        "recipe_name": Path(options.recipe_argument).name.removesuffix(".toml"),
        "recipe": recipe.as_table(),
        "method_code": code_record(recipe.method),
        "overrides": options.recipe_overrides,
        "order": plan.order.name,
        "datasets": list(plan.order.tasks),
        "shots": plan.order.shots,
        "label_spaces": list(plan.label_spaces),
        "seed": options.seed,
        "model": options.model,
        "pretrained": options.pretrained,
        # Told by nothing that is loaded: a flag alone decides it. Where a file says so too, its digest does.
        "quick_gelu": decided_by_flag(options.model, options.pretrained, options.quick_gelu),
        "shards": shards,
        "reference_images": None if options.reference_images is None else str(options.reference_images),
        "reference_captions": None if texts is None else texts.record,
        "manifests_sha256": manifests_digest(plan.manifests, plan.order),
    }


def identity_beside(listing: BesideListing) -> dict[str, Any]:
    """Nothing for a run that evaluates its tasks alone, as the records of before have it."""
    identity: dict[str, Any] = {}
    if listing.manifests:
        identity |= {"also_evaluate": list(listing.manifests), "also_manifests_sha256": tasks_digest(listing.manifests.values())}
    if listing.pairs:
        identity |= {"retrieval": {pairs.name: pairs.digest() for pairs in listing.pairs}}
    return identity


def weights_digest(options: RunOptions, student: Backbone) -> str | None:
    """Of the weights that were loaded, None for random ones, which the seed decides; and of what files say of them beside their shapes."""
    if options.pretrained == "random":
        return None
    return checksum(_configuration(options, student), student.network.state_dict())


def _configuration(options: RunOptions, student: Backbone) -> str:
    """What decides features beside the weights, where neither a name nor a tag does. Older runs noted that of folders alone."""
    described = Path(options.model, CONFIG_FILE)
    if described.is_file():
        return described.read_text(encoding="utf-8")
    preprocess_cfg, is_file = student.config["preprocess_cfg"], options.pretrained is not None and Path(options.pretrained).is_file()
    is_usual = all(preprocess_cfg[key] == OPENAI_PREPROCESSING[key] for key in ("mean", "std"))
    if (options.pretrained is None and options.model != MINI) or (is_file and not is_usual):
        return json.dumps(student.config, sort_keys=True)
    return ""


def code_record(method: str) -> dict[str, str] | None:
    """Of a method that is not ours."""
    code = method_code(method)
    return None if code is None else dataclasses.asdict(code)
