"""Workers that start in the same moment: between a worker's looks at the folder another one may have begun it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from gift_generate.output.folder import check_folder
from gift_shared.schema import PLAN_FILE, SHARD_FOLDER


def test_a_folder_that_another_worker_begins_between_two_looks_is_taken(plan: Path, tmp_path: Path, monkeypatch) -> None:
    out, listing = tmp_path / "out", Path.iterdir
    out.mkdir()

    def begin_after_the_look(path: Path) -> Iterator[Path]:
        entries = list(listing(path))
        if path == out and not entries:
            shutil.copy(plan, out / PLAN_FILE)
            (out / SHARD_FOLDER).mkdir()
        return iter(entries)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", begin_after_the_look)
        check_folder(out, plan)
    assert (out / SHARD_FOLDER).is_dir()
    check_folder(out, plan)
