"""gift-generate import: images that were made elsewhere. Imports nothing heavy until the command runs."""

import tempfile
from pathlib import Path

from gift_generate.cli.options import ManifestFolders, Out
from gift_generate.cli.summary import print_summary, tell
from gift_generate.images.import_request import ImportRequest
from gift_shared.options import takes_options


@takes_options
def import_(out: Out, request: ImportRequest, manifests: ManifestFolders = None) -> None:
    """Turn images made by the authors' code (image_text.csv and JPEGs) into shards."""
    from gift_generate.images.imported import plan_import
    from gift_generate.pipeline import run
    from gift_generate.workers.rank import Worker
    from gift_shared.manifests import Manifests
    from gift_shared.parquet_files import write_plan

    planned = plan_import(request, Manifests(tuple(manifests or ())))
    for note in planned.notes:
        tell(note)
    with tempfile.TemporaryDirectory() as temporary:
        plan_path = Path(temporary) / "plan.parquet"
        write_plan(plan_path, planned.plan, planned.metadata)
        print_summary(out, run(out, plan_path, planned.images, Worker(), tell))
