"""Records as Parquet: field for field what the lines of JSON hold."""

import json

import pytest

from fromfew.bench.parquet import packed
from fromfew.bench.records import append, prepare, read
from fromfew.bench.report import report
from fromfew.bench.run import bench
from fromfew.errors import FromfewError


def unpacked(path):
    """Rows as records: empty fields left out, maps and JSON as mappings again."""
    table = pytest.importorskip("pyarrow.parquet").read_table(path, partitioning=None)
    records = []
    for row in table.to_pylist(maps_as_pydicts="strict"):
        row = {name: value for name, value in row.items() if value is not None}
        row |= {name: json.loads(row[name]) for name in ("settings", "base", "options") if name in row}
        records.append(row | json.loads(row.pop("other", "{}")))
    return records


def test_the_report_leaves_a_file_with_every_field_of_every_record(plan, tmp_path):
    bench(plan(methods=("base", "paste", "textual-inversion"), subjects=1), tmp_path)
    append(tmp_path, {"key": "f", "kind": "failed", "method": "broken", "task": "t v1", "why": "no luck"})
    append(tmp_path, {"key": "n", "kind": "cell", "method": "newer", "task": "t v1", "scores": {"x": [0.5, None]},
                      "prompts": ["a", "b"], "images": 1, "seconds": {}, "bytes": 0, "memory": {"process": 1},
                      "subject": "s", "seed": 0, "versions": {}, "machine": "m",
                      "base": {"name": "b", "fingerprint": "f"}, "pictures": "none", "mood": ["good", 3]})  # fmt: skip
    written = report(tmp_path)
    records = read(tmp_path)
    assert sorted(one["kind"] for one in records) == ["cell"] * 4 + ["failed"] + ["set"] * 3
    assert unpacked(written.parquet) == records


def test_what_no_record_has_said_is_empty_not_zero():
    from io import BytesIO

    pytest.importorskip("pyarrow")
    (one,) = unpacked(BytesIO(packed([{"key": "k", "kind": "failed", "seed": 0}])))
    assert one == {"key": "k", "kind": "failed", "seed": 0}


def test_without_pyarrow_the_report_is_written_all_the_same(plan, tmp_path, monkeypatch):
    prepare(tmp_path)
    bench(plan(methods=("paste",), subjects=1), tmp_path)
    monkeypatch.setattr("fromfew.bench.report.find_spec", lambda name: None)
    written = report(tmp_path)
    assert written.parquet is None
    assert written.html.exists()
    assert not (tmp_path / "records.parquet").exists()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(FromfewError, match=r"fromfew\[parquet\]"):
        packed([])
