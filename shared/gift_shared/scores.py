"""Columns beside an index: how well a CLIP finds that each picture shows its caption. A file for each scorer, row for row the index's.

They do not stand in index.parquet itself: by its digest runs, cards and repositories know a folder, which stays what it is, and several
CLIPs may judge it.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gift_shared.documents import shape_fault
from gift_shared.errors import ConfigError, ShardError, unknown_name
from gift_shared.parquet_files import RowFile
from gift_shared.remote_files import NotThereError
from gift_shared.schema import INDEX_FILE, SCORE_FOLDER, SCORES_SCHEMA
from gift_shared.storage import Folder, RemoteFolder, index_file

INDEX_SHA256 = "index_sha256"  # in the metadata: which rows and pictures were judged
SCORER = "scorer"  # in the metadata, JSON: by which CLIP, and among how many captions
LONGEST = 1.01  # of a cosine, with what rounding may add


def score_file(name: str) -> str:
    """Place of the scores of this name in an output folder."""
    return f"{SCORE_FOLDER}/{name}.parquet"


def score_names(out: Path) -> list[str]:
    """Names of all scores of an output folder."""
    return sorted(path.stem for path in (out / SCORE_FOLDER).glob("*.parquet"))


def open_scores(folder: Folder, name: str | None) -> RowFile:
    """The scores of a finished output folder by their name, or those it has if it has one alone; held against its index.

    Raises: ConfigError if the name is needed and not given, or unknown; ShardError if there are none, of another index, or damaged.
    """
    command = f"gift-generate score --out {folder} --clip MODEL"
    index = index_file(folder)
    if not index.is_file():
        raise ShardError(f"{folder} has no {INDEX_FILE}, so it has no scores either: it is not finished.")
    scores = RowFile(_path(folder, name, command), SCORES_SCHEMA, ShardError, "score file", _fault, command)
    if scores.metadata.get(INDEX_SHA256) != file_sha256(index) or scores.num_rows != pq.read_metadata(index).num_rows:
        scores.close()
        raise ShardError(f"{scores.path} is of another {INDEX_FILE}: pictures were made again since. Run `{command}` again.")
    return scores


def scorer_of(scores: RowFile) -> dict[str, Any]:
    """By whom these scores are. Raises ShardError if they do not say it."""
    try:
        told = json.loads(scores.metadata.get(SCORER, ""))
        fault = shape_fault(told, {"clip": str, "weights": str})
    except (ValueError, RecursionError) as error:
        fault = f": {error}"
    if fault is not None:
        raise ShardError(f"{scores.path} does not tell its scorer{fault}. Make the scores again with gift-generate score.")
    return dict(told)


def score_faults(out: Path) -> Iterator[str]:
    """What is wrong with the scores beside a sound index, a line for each."""
    for name in score_names(out):
        try:
            with open_scores(out, name) as scores:
                for _ in scores.batches():
                    pass
        except ShardError as error:
            yield str(error)


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes, of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _path(folder: Folder, name: str | None, command: str) -> Path:
    if isinstance(folder, RemoteFolder):
        if name is None:
            raise ConfigError(f'{folder} cannot be asked which scores it has: name them, in a recipe as [replay] scores = "NAME".')
        try:
            return folder.table(score_file(name))
        except NotThereError as error:
            raise ShardError(f"{folder}/{score_file(name)} is not there: run `{command}` where the folder lies.") from error
    there = score_names(folder)
    if not there:
        raise ShardError(f"{folder} has no scores: run `{command}` first.")
    if name is None and len(there) > 1:
        raise ConfigError(f'{folder} has several scores ({", ".join(there)}): name one, in a recipe as [replay] scores = "{there[0]}".')
    if name is not None and name not in there:
        raise ConfigError(f"{folder}: {unknown_name('scores', name, there)} `{command} --name {name}` makes them.")
    return folder / score_file(name or there[0])


def _fault(rows: pa.Table) -> str | None:
    """What scores may not claim."""
    there = set(rows.column_names)
    if "rank" in there and pc.any(pc.less(rows["rank"], 1)).as_py():
        return "a rank is below 1, the best"
    if "similarity" in there and pc.any(pc.invert(pc.less_equal(pc.abs(rows["similarity"]), LONGEST))).as_py():
        return "a similarity is no cosine"
    return None
