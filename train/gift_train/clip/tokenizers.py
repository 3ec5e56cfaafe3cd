"""open_clip's tokenizers: found or refused in one line, and how many tokens a text has in each.

Three kinds come out of `open_clip.get_tokenizer`: its own byte pairs (CLIP), Hugging Face's (SigLIP, MetaCLIP 2, CLIPA, every text tower
of transformers), and SigLIP's sentencepiece. What they put around a text is theirs: two tokens, one, three.
"""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer, basic_clean, canonicalize_text
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_shared.hub import is_unreachable

Tokenizer = Callable[..., Tensor]
_IN_FOLDER = "local-dir:"  # open_clip's word for a model folder
_PACKAGES = {"transformers": "transformers", "sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}  # by what is imported
_NAMED_WHERE_MISSING = ("sentencepiece", "protobuf", "tiktoken")  # the last is what transformers tries without sentencepiece
_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.gz")  # of Hugging Face's kinds, and merges of open_clip's
_COPY = "Copy the folder again, its tokenizer's files with it."
_CLIPS_SPECIAL = 3  # what HFTokenizer's mode "clips" puts around a text: start, end, class


def load_tokenizer(name: str, **overrides: object) -> Tokenizer:
    """The tokenizer of a model, by open_clip's name or `local-dir:` and a folder; `overrides` are open_clip's own.

    Raises: ConfigError, one line, if it is on the hub and that cannot be reached, its files are not whole, or a package is missing.
    """
    with _telling(name):
        tokenizer: Tokenizer = open_clip.get_tokenizer(name, **overrides)
        one, other = tokenizer(["a", "b"])
    if one.equal(other):  # transformers makes one of no words where a folder holds its settings alone
        raise ConfigError(f"The tokenizer {_where(name)} knows no words: its vocabulary is missing. {_COPY}")
    return tokenizer


def num_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has uncut, all that the tokenizer puts around it included."""
    encode = getattr(tokenizer, "encode", None)  # of CLIP's kind, ours for folders of transformers too
    if encode is not None:
        return [len(encode(text)) + 2 for text in texts]  # start and end
    inner, cleaned = _hugging_face(tokenizer), [_cleaned(tokenizer, text) for text in texts]
    if not cleaned:
        return []
    is_clips = getattr(tokenizer, "tokenizer_mode", "") == "clips"
    # verbose=False: the library would warn of texts longer than its own maximum, which is another one than CLIP's.
    rows = inner(cleaned, padding=False, truncation=False, add_special_tokens=not is_clips, verbose=False)["input_ids"]
    return [len(row) + _CLIPS_SPECIAL * is_clips for row in rows]


def _hugging_face(tokenizer: Any) -> Any:
    """The tokenizer of transformers that open_clip's wraps."""
    return tokenizer.tokenizer


def _cleaned(tokenizer: Any, text: str) -> str:
    """The text as the wrapper hands it on."""
    if isinstance(tokenizer, HFTokenizer):
        return str(tokenizer.clean_fn(text))
    return str(canonicalize_text(basic_clean(text)))  # SigLipTokenizer


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """transformers raises what its parts happen to: OSError, ValueError, ImportError, and of its Rust part a bare Exception."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"
        raise ConfigError(f"The tokenizer {_where(name)} could not be loaded. {_advice(name, error)} ({reason})") from error


def _where(name: str) -> str:
    return f"in {name.removeprefix(_IN_FOLDER)}" if name.startswith(_IN_FOLDER) else f"of {name}"


def _advice(name: str, error: Exception) -> str:
    missing = [package for module, package in _PACKAGES.items() if not _is_installed(module)]
    folder = Path(name.removeprefix(_IN_FOLDER)) if name.startswith(_IN_FOLDER) else None
    if folder is not None and not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        return f"The folder holds no vocabulary ({', '.join(_VOCABULARIES)}). {_COPY}"
    if missing and (
        isinstance(error, ImportError) or any(word in str(error).lower() for word in ("sentencepiece", "tiktoken", "protobuf"))
    ):
        return f"It needs what is not installed here: pip install {' '.join(missing)}."
    if folder is not None:
        return _COPY
    source = _text_settings(name).get("hf_tokenizer_name")
    if source and is_unreachable(error):
        return f"It comes from the hub: where there is a network, run `hf download {source}`, and bring its cache (HF_HOME) here."
    return "Take another model, or a folder with its tokenizer's files."


def _text_settings(name: str) -> Mapping[str, Any]:
    """open_clip's own description of a text tower; of a model that it does not list, nothing."""
    known: Any = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    return known["text_cfg"] if known else {}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
