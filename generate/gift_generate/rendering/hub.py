"""A model from the Hugging Face hub: what it is first, and of its files those alone that will be loaded. The only importer of its library.

The hub answers alike for a name that does not exist and for one that is private; only somebody who is logged in is told which it is.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import errors

from gift_generate.rendering.model_card import CARD_FILE
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
from gift_shared.errors import ConfigError, first_line

USUAL_STEMS = ("model.", "model-", "diffusion_pytorch_model.", "diffusion_pytorch_model-")  # beside them a repository may hold others
SECONDS_TO_ANSWER = 30.0
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
    except _Unreachable as unreachable:
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


class _Unreachable(ConfigError):
    """No answer from the hub, and nothing here."""


def _ask(name: str, revision: str, question: Callable[[], Answer]) -> Answer:
    """What a call of the hub's library answers; its errors as one line each. Raises ConfigError."""
    where = f"--model {name!r}"
    try:
        return question()
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{where} is gated: accept its licence on its page of the hub, then log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(_not_found(where)) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{where} has no revision {revision!r}: give a branch, tag or commit of it as --revision.") from error
    except errors.LocalEntryNotFoundError as error:
        raise _why_it_is_not_here(where, error) from error
    except errors.EntryNotFoundError as error:
        raise ConfigError(
            f"{where} has no {MODEL_INDEX}, so it is no model in diffusers format. Weights in one file: download it, and give its path."
        ) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{where} is no name of the hub: {first_line(error)}") from error
    except errors.HfHubHTTPError as error:
        raise _refused(where, error) from error
    except (errors.OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        raise _unreachable(where, error) from error
    except OSError as error:
        if error.errno is not None:
            raise  # a full disk or missing rights, not a wrong name
        raise _unreachable(where, error) from error
    except Exception as error:
        if _is_of_the_transport(error):
            raise _unreachable(where, error) from error
        raise


def _is_of_the_transport(error: Exception) -> bool:
    """Errors of the client for HTTP that the hub's library happens to use: httpx, of one name or another, or requests."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3")


def _not_found(where: str) -> str:
    if _is_logged_in():
        return f"{where} is neither a folder here nor on the hub: is it misspelt? If it is private, your token may not read it."
    return (
        f"{where} is neither a folder here nor on the hub for everybody: it is misspelt, or private. "
        "If it is private, log in with `hf auth login` or set HF_TOKEN."
    )


def _is_logged_in() -> bool:
    return bool(huggingface_hub.get_token())


def _refused(where: str, error: Any) -> ConfigError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return ConfigError(f"{where}: the hub does not know your token. Log in again with `hf auth login`, or mend HF_TOKEN.")
    if status == 403:
        return ConfigError(f"{where} is private, and your token may not read it: log in with `hf auth login` as somebody who may.")
    return _unreachable(where, error)


def _why_it_is_not_here(where: str, error: BaseException) -> ConfigError:
    """The library wraps what went wrong on the way into "not in the cache"."""
    cause = error.__cause__ or error
    if isinstance(cause, errors.GatedRepoError | errors.RepositoryNotFoundError):
        return ConfigError(_not_found(where))
    if isinstance(cause, errors.HfHubHTTPError):
        return _refused(where, cause)
    return _unreachable(where, cause)


def _unreachable(where: str, error: BaseException) -> _Unreachable:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        why = "HF_HUB_OFFLINE is set"
    else:
        why = f"the hub cannot be reached: {first_line(error)}"
    return _Unreachable(
        f"{where} is no folder here and not in the hub's cache of this machine, and {why}. "
        "Where there is a network, download it once; then copy its folder or the cache (HF_HOME) here."
    )
