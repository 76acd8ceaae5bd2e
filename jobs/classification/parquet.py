"""OUT.parquet: the rows of the CSV with types, for pandas, DuckDB, Spark and others.

filename, status   string
label, label_2…    string, null on error rows
prob, prob_2…      float32, null on error rows
error              string, null on ok rows
filename_bytes     binary: the exact name if it is not valid UTF-8 and `filename` escapes it; else null
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import IO, Any

from jobs.errors import JobError
from logpose.common.errors import printable

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise JobError(
        f"expected the package pyarrow for --format parquet, found it cannot be imported"
        f" ({printable(str(error))}): run pip install pyarrow"
    ) from error

# Rows in memory at a time. Fixed, so that the bytes of the file do not depend on the parts.
ROWS_PER_GROUP = 32_768


def write_parquet(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows of text, with the columns of the CSV, to an open file, which stays open. Raises OSError."""
    types = [pa.float32() if name.startswith("prob") else pa.string() for name in columns]
    schema = pa.schema([*zip(columns, types, strict=True), ("filename_bytes", pa.binary())])
    rows = iter(rows)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(_table(group, columns, schema))


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str], schema: Any) -> Any:
    """Convert a group of rows to a pyarrow Table."""
    by_name = dict(zip(columns, zip(*rows, strict=True), strict=True))
    statuses = by_name["status"]
    values: dict[str, list[Any]] = {}
    for name, cells in by_name.items():
        if name.startswith("prob"):
            values[name] = [float(cell) if cell else None for cell in cells]
        elif name in ("filename", "status"):
            values[name] = [_text(cell) for cell in cells]
        else:
            used_by = "error" if name == "error" else "ok"  # the status of the rows that use this column
            values[name] = [
                _text(cell) if status == used_by else None for cell, status in zip(cells, statuses, strict=True)
            ]
    values["filename_bytes"] = [_bytes_unless_utf8(name) for name in by_name["filename"]]
    return pa.table(values, schema=schema)


def _text(cell: str) -> str:
    """Return the cell as valid UTF-8: a Parquet string cannot hold anything else."""
    return printable(cell) if _bytes_unless_utf8(cell) else cell


def _bytes_unless_utf8(cell: str) -> bytes | None:
    """Return the bytes of a text that is not valid UTF-8 (Python holds them as lone surrogates), else None."""
    try:
        cell.encode()
    except UnicodeEncodeError:
        return cell.encode("utf-8", "surrogateescape")
    return None
