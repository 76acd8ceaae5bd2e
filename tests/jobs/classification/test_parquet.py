"""OUT.parquet: types, exact names, and the same bytes each time."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.classification.table import ResumableTable, error_row, header, ok_row
from jobs.errors import JobError
from jobs.options import ClassifyOptions
from logpose.common.errors import printable
from tests.jobs.classification.tables import (
    IDENTITY,
    PARQUET,
    PLAIN,
    has_invalid_utf8,
    image,
    names,
    names_in,
    save,
    texts,
    with_unusual_names,
)


def parquet(path: Path, parts: Sequence[Sequence[Sequence[str]]], topk: int = 1, *, merge: bool = False) -> pa.Table:
    table = ResumableTable(path, IDENTITY, ClassifyOptions(topk=topk, format="parquet"))
    save(table, parts, merge=merge)
    return pq.read_table(path)


def test_parquet_columns_have_types(tmp_path: Path) -> None:
    first = ok_row("a.png", [("x", 0.5), ("y", 0.3)], ClassifyOptions(topk=2))
    found = parquet(tmp_path / "out.parquet", [[first], [error_row("b.png", "empty: why", 2)]], topk=2)
    text, number = pa.string(), pa.float32()
    assert found.schema.names == [*header(2), "filename_bytes"]
    assert found.schema.types == [text, text, text, number, text, text, number, pa.binary()]
    prob_2 = pytest.approx(0.3, abs=1e-7)
    assert [list(row.values()) for row in found.to_pylist()] == [
        ["a.png", "ok", "x", 0.5, None, "y", prob_2, None],
        ["b.png", "error", None, None, "empty: why", None, None, None],
    ]
    assert names_in(tmp_path) == ["out.parquet"]


@with_unusual_names
@given(cells=st.lists(st.tuples(names, texts), min_size=1, max_size=20))
def test_parquet_round_trip_of_names_and_labels(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("parquet") / "out.parquet"
    rows = [image(name, label) for name, label in cells]
    rows += [error_row(name, reason, 1) for name, reason in cells]
    found = parquet(path, [rows[:3], rows[3:]])
    shown = pd.read_parquet(path)
    assert shown["status"].tolist() == ["ok"] * len(cells) + ["error"] * len(cells)
    assert shown["prob"].isna().tolist() == [False] * len(cells) + [True] * len(cells)
    for row, exact in zip(found.to_pylist(), [row[0] for row in rows], strict=True):
        if has_invalid_utf8([(exact, "")]):
            assert row["filename"] == printable(exact)
            assert row["filename_bytes"] == os.fsencode(exact)
        else:
            assert (row["filename"], row["filename_bytes"]) == (exact, None)
    assert shown["filename"].tolist() == found["filename"].to_pylist()
    shown_texts = [printable(text) if has_invalid_utf8([(text, "")]) else text for _, text in cells]
    assert found["label"].to_pylist() == shown_texts + [None] * len(cells)
    assert found["error"].to_pylist() == [None] * len(cells) + shown_texts


def test_bytes_do_not_depend_on_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.classification.parquet.ROWS_PER_GROUP", 30)
    rows = [image(f"{number:03}", random.Random(number).choice("abc"), number / 100) for number in range(100)]
    tens = [rows[start : start + 10] for start in range(0, 100, 10)]
    cuts = {"all": [rows], "two": [rows[:41], rows[41:]], "tens": tens}
    for name, parts in cuts.items():
        parquet(tmp_path / name, parts)
    parquet(tmp_path / "merged", [rows[start::7] for start in range(7)], merge=True)
    assert len({path.read_bytes() for path in tmp_path.iterdir() if path.name[0] != "."}) == 1
    described = pq.ParquetFile(tmp_path / "all").metadata
    assert [described.row_group(number).num_rows for number in range(4)] == [30, 30, 30, 10]
    assert pq.read_table(tmp_path / "all")["filename"].to_pylist() == [row[0] for row in rows]


def test_missing_pyarrow_is_an_error_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "jobs.classification.parquet", raising=False)
    with pytest.raises(JobError, match=r"found it cannot be imported \(.*\): run pip install pyarrow"):
        ResumableTable(tmp_path / "out.parquet", IDENTITY, PARQUET)
    assert names_in(tmp_path) == []
    ResumableTable(tmp_path / "out.csv", IDENTITY, PLAIN)


def test_csv_does_not_import_pyarrow() -> None:
    script = "import sys, jobs.classification.table; print('pyarrow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_spreadsheet_safe_is_not_for_parquet(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="leave it out, or give --format csv"):
        ResumableTable(tmp_path / "out.parquet", IDENTITY, ClassifyOptions(spreadsheet_safe=True))
    assert names_in(tmp_path) == []


def test_table_without_parts_is_empty(tmp_path: Path) -> None:
    assert parquet(tmp_path / "out.parquet", []).num_rows == 0
