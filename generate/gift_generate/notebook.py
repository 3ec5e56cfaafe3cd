"""Stage 1 in a notebook: an output folder as its rows and images."""

from pathlib import Path

import pyarrow as pa

from gift_generate.output import folder
from gift_shared.image_table import ImageTable
from gift_shared.parquet_files import read_output_index
from gift_shared.schema import INDEX_FILE, INDEX_SCHEMA
from gift_shared.storage import open_folder


def open_output(location: str | Path) -> ImageTable:
    """See `gift_generate.open_output`."""
    opened = open_folder(location)
    if not isinstance(opened, Path) or (opened / INDEX_FILE).is_file():
        return ImageTable(read_output_index(opened)[0], opened)
    tables = [rows for _, rows in folder.open_output(opened).complete_rows()]
    return ImageTable(pa.concat_tables([INDEX_SCHEMA.empty_table(), *(table.replace_schema_metadata(None) for table in tables)]), opened)
