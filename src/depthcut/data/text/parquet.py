"""Documents of parquet files, read a few rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcut.data.text import limits
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from pyarrow import DataType
    from pyarrow.parquet import ParquetFile

BATCH_BYTES = 16 << 20
BATCH_ROWS = 64


def read_column(file: Path, column: str) -> Iterator[str]:
    """Yield the text in a column of a parquet file; nulls are skipped.

    A text that many rows share is held once, because otherwise a small file could expand to gigabytes.
    """
    import pyarrow
    from pyarrow import parquet as pq

    nulls = row = 0
    try:
        with pq.ParquetFile(file) as table:
            rows = batch_rows(table, column, file)
        with pq.ParquetFile(file, read_dictionary=[column]) as table:
            for batch in table.iter_batches(batch_size=rows, columns=[column]):
                for value in batch.column(0):
                    row += 1
                    nulls += not value.is_valid
                    if value.is_valid:
                        yield limits.require_bounded(value.as_py(), f"{file}, row {row}")
    except UnicodeDecodeError:
        raise UserError(f"{file}: row {row} of column `{column}` is not UTF-8; convert it first") from None
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"{file} is not a parquet file, or is damaged: {reason}") from None
    finally:
        limits.log_skipped_nulls(file, column, nulls)


def batch_rows(table: "ParquetFile", column: str, file: Path) -> int:
    """Return how many rows to read at a time, by their size in the file's metadata.

    Raises:
        UserError: if the column does not exist or is not text.
    """
    schema = table.schema_arrow
    if column not in schema.names:
        raise UserError(f"{file} has no column `{column}`; its columns: {', '.join(schema.names)}")
    kind = schema.field(column).type
    if not is_text_type(kind):
        raise UserError(f"{file}: column `{column}` is {kind}, not text")
    about = table.metadata
    groups = [about.row_group(index) for index in range(about.num_row_groups)]
    average = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(average, 1)))


def is_text_type(kind: "DataType") -> bool:
    """Return whether a column type is text, in any of pyarrow's forms."""
    from pyarrow import types

    inner: Any = kind.value_type if types.is_dictionary(kind) else kind  # pyright: ignore[reportAttributeAccessIssue]
    return types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner)
