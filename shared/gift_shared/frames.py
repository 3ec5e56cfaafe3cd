"""Tables as pandas DataFrames, for notebooks. The only module that knows pandas, which is asked for when a table is, and not before."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gift_shared.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame as DataFrame


def table_frame(table: pa.Table) -> "DataFrame":
    """The columns of an Arrow table as they are."""
    _pandas()
    return table.to_pandas()


def records_frame(records: Sequence[Mapping[str, Any]]) -> "DataFrame":
    """A row for each record; what is nested becomes columns `outer/inner`."""
    return _pandas().json_normalize(list(records), sep="/")


def matrix_frame(values: Any, rows: Sequence[str], columns: Sequence[str], row_name: str, column_name: str) -> "DataFrame":
    """Numbers [rows, columns] under their names."""
    pandas = _pandas()
    index = pandas.Index(list(rows), name=row_name, dtype=object)
    return pandas.DataFrame(values, index=index, columns=pandas.Index(list(columns), name=column_name), dtype=float)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("A table as a DataFrame needs pandas: pip install 'gift-cl[notebook]'.") from error
    return pandas
