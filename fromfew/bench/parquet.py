"""Records as Parquet, for those who read tables: what `records.jsonl` holds, typed, one row a record."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from fromfew.errors import FromfewError

__all__ = ["FILE", "packed"]

FILE = "records.parquet"
_TEXT = ("key", "kind", "method", "task", "subject", "machine", "pictures", "why")
_WHOLE = ("schema", "seed", "images", "bytes", "learned")
_JSON = ("settings", "base", "options")
"""Of another shape in every method: kept as JSON."""


def packed(records: Iterable[Mapping[str, Any]]) -> bytes:
    """The bytes of a Parquet file with every field of every record.

    Numbers by name (scores, seconds, memory, sets) are maps; settings, base and options are JSON, and so is what
    records hold that has no column here, under "other".

    Raises:
        FromfewError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FromfewError("Records as Parquet need pyarrow: pip install 'fromfew[parquet]'") from error
    schema = _schema(pyarrow)
    file = io.BytesIO()
    table = pyarrow.Table.from_pylist([_row(one, schema.names) for one in records], schema=schema)
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def _schema(pa: Any) -> Any:
    text, real, whole = pa.string(), pa.float64(), pa.int64()
    maps = {
        "scores": pa.list_(real), "metrics": text, "seconds": real, "memory": whole, "versions": text, "sets": real,
    }  # fmt: skip
    return pa.schema(
        [
            *((name, text) for name in (*_TEXT, *_JSON, "other")),
            *((name, whole) for name in _WHOLE),
            *((name, pa.map_(text, kind)) for name, kind in maps.items()),
            ("prompts", pa.list_(text)),
            ("count", pa.list_(whole)),
        ]
    )


def _row(record: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """A record's fields as the columns want them."""
    known = set(columns) - {"other"}
    row = {name: value for name, value in record.items() if name in known}
    row = {name: list(value.items()) if _mapped(name, value) else value for name, value in row.items()}
    row |= {name: json.dumps(record[name], sort_keys=True) for name in _JSON if name in record}
    more = {name: value for name, value in record.items() if name not in known}
    return row | ({"other": json.dumps(more, sort_keys=True)} if more else {})


def _mapped(name: str, value: Any) -> bool:
    return isinstance(value, Mapping) and name not in _JSON
