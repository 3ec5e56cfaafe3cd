"""A model from the Hugging Face hub: what it is first, and of its files those alone that will be loaded."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import errors

from gift_generate.rendering.model_folder import (
    CONFIGURATION_SUFFIXES,
    MODEL_INDEX,
    ModelIndex,
    has_weights,
    loaded_weights,
    only_variant,
    read_index,
    require_variant,
)
from gift_shared.cards import CARD_FILE
from gift_shared.errors import ConfigError
from gift_shared.hub import SECONDS_TO_ANSWER, Repository, UnreachableError

USUAL_STEMS = ("model.", "model-", "diffusion_pytorch_model.", "diffusion_pytorch_model-")  # beside them a repository may hold others
NOWHERE = (
    "{where} is no folder here and not in the hub's cache of this machine, and {why}. "
    "Where there is a network, download it once; then copy its folder or the cache (HF_HOME) here."
)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub at one commit, of which the index is here already."""

    name: str
    revision: str  # as asked for: a branch, tag or commit
    folder: Path  # where the snapshot lies, as far as it is here
    index: ModelIndex
    files: Collection[str] | None  # of the repository; None where the hub cannot be reached: then what is here must do

    @property
    def commit(self) -> str:
        """What the revision was when it was looked up; snapshots are kept under it."""
        return self.folder.name


def look_up(name: str, revision: str | None) -> HubModel:
    """Read a repository's index, and nothing else. Raises ConfigError that tells what is wrong and what to do."""
    revision = revision or "main"
    # Asked first, since it is told at once where there is no network; a download would be tried for half a minute.
    try:
        files = _ask(name, revision, lambda: _listing(name, revision))
    except UnreachableError as unreachable:
        try:
            path = huggingface_hub.hf_hub_download(name, MODEL_INDEX, revision=revision, local_files_only=True)
        except errors.LocalEntryNotFoundError:
            raise unreachable from None
        return HubModel(name, revision, Path(path).parent, read_index(Path(path)), None)
    path = _ask(name, revision, lambda: huggingface_hub.hf_hub_download(name, MODEL_INDEX, revision=revision))
    return HubModel(name, revision, Path(path).parent, read_index(Path(path)), files)


def _listing(name: str, revision: str) -> list[str]:
    info = huggingface_hub.model_info(name, revision=revision, timeout=SECONDS_TO_ANSWER)
    return [sibling.rfilename for sibling in info.siblings or ()]


def download(model: HubModel, index: ModelIndex, variant: str | None, *, with_weights: bool = True) -> str | None:
    """Have the files that the index's components are loaded from in the model's folder. Raises ConfigError.

    Without a network the folder stays as it is. Returns: the variant that is loaded, which may be one that was not asked for if a
    component has no other weights.
    """
    if model.files is None:
        return variant
    by_component = {
        component: [name.partition("/")[2] for name in model.files if name.partition("/")[0] == component and name.count("/") == 1]
        for component in index.components
    }
    wanted = [MODEL_INDEX, *(name for name in (CARD_FILE,) if name in model.files)]
    if with_weights and variant is None:
        variant = only_variant(index, by_component)
    elif with_weights and variant is not None:
        require_variant(index, by_component, variant, model.name)
    for component, (_, class_name) in index.components.items():
        files = by_component[component]
        chosen = [name for name in files if name.endswith(CONFIGURATION_SUFFIXES)]
        if with_weights and has_weights(class_name):
            usual = [name for name in files if name.startswith(USUAL_STEMS)]
            chosen += loaded_weights(usual or files, variant, f"{model.name}: {component}")
        wanted += [f"{component}/{name}" for name in chosen]
    if not all((model.folder / name).is_file() for name in wanted):
        _ask(
            model.name,
            model.revision,
            lambda: huggingface_hub.snapshot_download(
                model.name, revision=model.commit, allow_patterns=[_literal(name) for name in wanted]
            ),
        )
    return variant


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


def _ask(name: str, revision: str, question: Callable[[], Answer]) -> Answer:
    """What a call of the hub's library answers; its errors as one line each. Raises ConfigError."""
    repository = Repository(
        where=f"--model {name!r}", revision=revision, absent="is neither a folder here nor on the hub", unreachable=NOWHERE
    )
    return repository.ask(lambda: _files_told_apart(repository, question))


def _files_told_apart(repository: Repository, question: Callable[[], Answer]) -> Answer:
    """A file that is missing there, or here: the library wraps what went wrong on the way into "not in the cache"."""
    try:
        return question()
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        if (reason := repository.refusal(cause)) is not None:
            raise ConfigError(f"{repository.where} {reason}") from error
        raise repository.out_of_reach(cause) from error
    except errors.EntryNotFoundError as error:
        raise ConfigError(
            f"{repository.where} has no {MODEL_INDEX}, so it is no model in diffusers format. "
            "Weights in one file: download it, and give its path."
        ) from error
