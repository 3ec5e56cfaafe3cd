"""A CLIP from the Hugging Face hub, `hf-hub:owner/name` or `hf-hub:owner/name@revision`: of its files those alone that will be loaded."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
from huggingface_hub import errors

from gift_shared.errors import ConfigError
from gift_shared.hub import SECONDS_TO_ANSWER, Repository, UnreachableError, hub_api
from gift_train.clip import model_folder, transformers_folder

PREFIX = "hf-hub:"
_DESCRIBING = (".json", ".txt", ".model", ".gz")  # configurations and tokenizers; none of them runs
_NOWHERE = (
    "{where} is not in the hub's cache of this machine, and {why}. "
    "Where there is a network, download it once; then copy the cache (HF_HOME) here, or its folder, and give that as --model."
)


@dataclass(frozen=True)
class HubName:
    """A repository at a revision: a branch, tag or commit."""

    name: str
    revision: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision != "main" else "")


def parse_name(model: str) -> HubName:
    """Take `hf-hub:owner/name[@revision]` apart. Raises ConfigError for what is none."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", model.removeprefix(PREFIX))
    if match is None:
        raise ConfigError(f"--model {model} is no repository of the hub: expected {PREFIX}owner/name, @revision behind it if you like.")
    return HubName(match[1], match[2] or "main")


def origin(model: str, pretrained: str | None) -> str | None:
    """The repository of the hub that a model's weights are published in; None for files and folders, and what is published elsewhere."""
    if model.startswith(PREFIX):
        return parse_name(model).name
    settings = open_clip.get_pretrained_cfg(model, pretrained) if model and pretrained else {}
    owner, _, rest = str(settings.get("hf_hub") or "").partition("/")  # owner/name/file, the file at times left out
    return f"{owner}/{rest.partition('/')[0]}" if rest else None


def snapshot(model: str, *, with_weights: bool = True) -> Path:
    """The folder of this machine that holds the repository's model, downloaded if need be. Raises ConfigError in one line.

    Without a network what the hub's cache holds must do.
    """
    asked, api = parse_name(model), hub_api()
    repository = Repository(
        where=f"--model {model}", revision=asked.revision, how=f"as {PREFIX}{asked.name}@REVISION", absent="is not on the hub",
        unreachable=_NOWHERE,
    )  # fmt: skip
    try:
        info = repository.ask(lambda: api.model_info(asked.name, revision=asked.revision, timeout=SECONDS_TO_ANSWER))
    except UnreachableError:
        if (folder := _in_the_cache(asked)) is None:
            raise
        return folder
    wanted = _wanted([sibling.rfilename for sibling in info.siblings or ()], model, with_weights=with_weights)
    patterns = [re.sub(r"([\[*?])", r"[\1]", name) for name in wanted]  # each matches its own name alone
    return Path(repository.ask(lambda: api.snapshot_download(asked.name, revision=asked.revision, allow_patterns=patterns)))


def _in_the_cache(asked: HubName) -> Path | None:
    """Where an earlier download of the repository lies, whole or not; whoever reads it tells what is missing."""
    for name in (model_folder.CONFIG_FILE, transformers_folder.CONFIG_FILE):
        with contextlib.suppress(errors.LocalEntryNotFoundError):
            return Path(hub_api().hf_hub_download(asked.name, name, revision=asked.revision, local_files_only=True)).parent
    return None


def _wanted(files: Sequence[str], model: str, *, with_weights: bool) -> list[str]:
    """Of a repository's files those of its model: open_clip's form if it is there, else transformers'."""
    here = [name for name in files if "/" not in name]
    describing = [name for name in here if name.endswith(_DESCRIBING)]
    if model_folder.CONFIG_FILE in here:
        weights = [name for name in model_folder.WEIGHTS_FILES if name in here][:1]
    elif transformers_folder.CONFIG_FILE in here:
        weights = [name for name in transformers_folder.WEIGHTS_FILES if name in here][:1]
    else:
        what = f"{model_folder.CONFIG_FILE} or {transformers_folder.CONFIG_FILE}"
        raise ConfigError(f"--model {model} has no {what}, so it is no CLIP of open_clip or transformers.")
    if not with_weights:
        return describing
    if not weights:
        raise ConfigError(
            f"--model {model} has no weights: expected {model_folder.WEIGHTS_FILES[0]} or {transformers_folder.WEIGHTS_FILES[0]}."
        )
    if weights[0].endswith(".index.json"):
        stem, _, suffix = weights[0].removesuffix(".index.json").rpartition(".")
        weights = [name for name in here if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", name)]
    return [*describing, *weights]
