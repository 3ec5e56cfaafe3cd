"""Stage 1: captions in, shards of synthetic images out. Knows nothing of CLIP or of training.

In a notebook: `gift_generate.open_output("shards")`, see docs/notebook.md. Importing this module imports nothing heavy.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gift_shared.image_table import ImageTable

__all__ = ["open_output"]


def open_output(location: "str | Path") -> "ImageTable":
    """The rows and images of an output folder of `gift-generate render` or `import`, by its path or URL.

    While a folder is being rendered it is what is complete so far: here, and not behind a URL, where it must be finished.
    Raises: PlanError or ShardError, in one line, for what is no output folder.
    """
    from gift_generate.notebook import open_output

    return open_output(location)
