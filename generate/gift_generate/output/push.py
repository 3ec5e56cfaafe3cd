"""A finished output folder to the Hugging Face hub, where `--shards hf://datasets/owner/name` reads it. What is not whole stays here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gift_generate.output.dataset_card import write_card
from gift_generate.output.folder import open_output
from gift_generate.output.verify import verify
from gift_shared.cards import CARD_FILE
from gift_shared.console import some_of
from gift_shared.errors import ShardError
from gift_shared.hub_upload import Destination, Tell, Upload, Uploaded, upload
from gift_shared.schema import INDEX_FILE, PLAN_FILE, RENDER_FILE, RETRY_FOLDER, SCORE_FOLDER, SHARD_FOLDER

PUBLISHED = (
    PLAN_FILE, RENDER_FILE, INDEX_FILE,
    f"{SHARD_FOLDER}/*.tar", f"{SHARD_FOLDER}/*.parquet", f"{RETRY_FOLDER}/*.json", f"{SCORE_FOLDER}/*.parquet",
)  # fmt: skip


def push(out: Path, to: Destination, tell: Tell) -> Uploaded:
    """Upload a folder that `require_whole` has passed. Raises as `upload` does."""
    if not (out / CARD_FILE).exists():
        write_card(out)  # without it the datasets library takes the Parquet files for the data
    what = Upload(
        folder=out,
        ours=PUBLISHED,
        last=(INDEX_FILE, CARD_FILE),
        deciding=(INDEX_FILE, PLAN_FILE, RENDER_FILE),
        what="shards of gift-generate",
    )
    return upload(what, to, tell)


def require_whole(out: Path, on_shard: Callable[[str], Any]) -> None:
    """Every shard is there and every byte claim holds. Raises PlanError if it is no output folder, ShardError for what is not whole."""
    output = open_output(out)
    left = output.remaining()
    if left or not (out / INDEX_FILE).is_file():
        what = f"{len(left)} of {len(output.shards)} shards are not there yet" if left else f"{INDEX_FILE} is not there yet"
        raise ShardError(f"{out} is not finished: {what}. Run the command that fills it again, then push.")
    faults = list(verify(out, on_shard))
    if faults:
        raise ShardError(f"{out} is not sound, so nothing was sent: {some_of(faults, most=1)}. gift-generate verify tells all.")
