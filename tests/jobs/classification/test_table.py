"""The table: names unchanged, every part once and in order, and no unrelated file touched."""

import json
import os
import re
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.classification import table as module
from jobs.classification.table import ResumableTable, error_row, header, ok_row
from jobs.errors import JobError, WorkFailedError
from jobs.options import ClassifyOptions
from tests.jobs.classification.tables import (
    IDENTITY,
    PARQUET,
    PLAIN,
    SPLITS,
    TABLE,
    digest,
    has_invalid_utf8,
    image,
    names,
    names_in,
    read,
    save,
    texts,
    with_unusual_names,
)

# Rows ---------------------------------------------------------------------------------------------------


def test_rows_have_the_columns_of_the_header() -> None:
    options = ClassifyOptions(topk=3)
    row = ok_row("a.png", [("x", 0.5), ("y", 0.25), ("z", 0.125)], options)
    assert header(3) == ["filename", "status", "label", "prob", "error", "label_2", "prob_2", "label_3", "prob_3"]
    assert row == ["a.png", "ok", "x", "0.500000", "", "y", "0.250000", "z", "0.125000"]
    assert error_row("a.png", "empty: why", 3) == ["a.png", "error", "", "", "empty: why", "", "", "", ""]
    assert header(1) == header(3)[:5]
    assert error_row("a.png", "empty: why", 1) == ["a.png", "error", "", "", "empty: why"]


@pytest.mark.parametrize(
    ("prob", "label"),
    [(0.89, "unknown"), (0.9, "x"), (0.91, "x"), (0.8999997615814209, "x"), (0.8999994, "unknown")],
)
def test_threshold_applies_to_the_first_label_only(prob: float, label: str) -> None:
    row = ok_row("a", [("x", prob), ("y", 0.05)], ClassifyOptions(topk=2, threshold=0.9))
    assert row == ["a", "ok", label, f"{prob:.6f}", "", "y", "0.050000"]
    assert (float(row[3]) < 0.9) == (label == "unknown")


# CSV ----------------------------------------------------------------------------------------------------


@with_unusual_names
@given(cells=st.lists(st.tuples(names, texts), min_size=1, max_size=20))
def test_csv_round_trip_of_names_and_labels(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    rows = [image(name, label) for name, label in cells]
    rows += [error_row(name, reason, 1) for name, reason in cells]
    table = ResumableTable(folder / "out.csv", IDENTITY, PLAIN)
    assert save(table, [rows]) == (len(cells), len(cells))
    assert read(folder / "out.csv") == [header(1), *rows]
    assert (folder / "out.csv").read_bytes().endswith(b"\n")
    reading: dict[str, Any] = {"keep_default_na": False, "encoding_errors": "surrogateescape"}
    assert pd.read_csv(folder / "out.csv", dtype=object, **reading).to_numpy().tolist() == rows
    if not has_invalid_utf8(cells):
        assert pd.read_csv(folder / "out.csv", dtype=str, **reading).to_numpy().tolist() == rows


def test_bytes_are_as_documented(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out.csv"
    assert save(ResumableTable(out, IDENTITY, PLAIN), SPLITS) == (4, 1)
    assert out.read_bytes() == TABLE
    assert names_in(out.parent) == ["out.csv"]


def test_table_without_parts_has_a_header_only(tmp_path: Path) -> None:
    assert save(ResumableTable(tmp_path / "out.csv", IDENTITY, PLAIN), []) == (0, 0)
    assert read(tmp_path / "out.csv") == [header(1)]


def test_spreadsheet_safe_escapes_formulas(tmp_path: Path) -> None:
    cells = ["=1", "+1", "-1", "@x", "\tx", "\rx", "x=1", "'=1", "", "\u2028=", "\n=1"]
    rows = [[name, "ok", name, "0.500000", "", name, "0.250000"] for name in cells]
    rows += [[name, "error", "", "", name, "", ""] for name in cells]
    safe = ClassifyOptions(topk=2, spreadsheet_safe=True)
    save(ResumableTable(tmp_path / "out.csv", IDENTITY, safe), [rows])
    found = read(tmp_path / "out.csv")[1:]
    escaped = ["'=1", "'+1", "'-1", "'@x", "'\tx", "'\rx", "x=1", "'=1", "", "\u2028=", "\n=1"]
    assert [row[0] for row in found] == escaped * 2
    assert [row[2] for row in found] == [row[5] for row in found] == escaped + [""] * len(cells)
    assert [row[4] for row in found] == [""] * len(cells) + escaped
    assert {row[3] for row in found} == {"0.500000", ""}


def test_escaping_does_not_change_the_order(tmp_path: Path) -> None:
    rows = [image(name) for name in sorted(["=a", "#a", "+a", "0", "'a"])]
    table = ResumableTable(tmp_path / "out.csv", IDENTITY, ClassifyOptions(spreadsheet_safe=True))
    save(table, [rows[::2], rows[1::2]], merge=True)
    assert [row[0] for row in read(tmp_path / "out.csv")[1:]] == ["#a", "'a", "'+a", "0", "'=a"]


def test_part_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = ResumableTable(tmp_path / "out.csv", IDENTITY, PLAIN)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(names_in(table.scratch)))
    table.write(0, digest(0), SPLITS[0])
    (part,) = (path.name for path in table.scratch.glob("part-*"))
    assert synced == [[f".{part}.tmp", "fingerprint.json"], ["fingerprint.json", part]]


# Merging ------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(parts=st.lists(st.sets(names, max_size=6), max_size=9))
def test_merged_parts_are_sorted(tmp_path_factory: pytest.TempPathFactory, parts: list[set[str]]) -> None:
    folder = tmp_path_factory.mktemp("merged")
    table = ResumableTable(folder / "out.csv", IDENTITY, PLAIN)
    rows = [[image(name) for name in sorted(part)] for part in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_OPEN_FILES", 2)
        patch.setattr(os, "fsync", lambda descriptor: None)  # slow on a real disk
        assert save(table, rows, merge=True) == (sum(map(len, parts)), 0)
    assert [row[0] for row in read(folder / "out.csv")[1:]] == sorted(name for part in parts for name in part)


# Two thousand parts, with a limit of 96 open files.
MANY = """
import os, resource, sys
from pathlib import Path
from jobs.classification.table import ResumableTable, ok_row
from jobs.options import ClassifyOptions

os.fsync = lambda descriptor: None
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
options = ClassifyOptions()
table = ResumableTable(Path(sys.argv[1]), {}, options)
for number in range(2000):
    names = [f"{(7 * number + step) % 4000:04}" for step in (0, 2000)]
    table.write(number, "0", [ok_row(name, [("a", 1.0)], options) for name in sorted(names)])
print(table.finish(2000, merge=sys.argv[2] == "merge"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("how", ["merge", "join"])
def test_many_parts_need_few_open_files(tmp_path: Path, how: str) -> None:
    out = tmp_path / "out.csv"
    command = [sys.executable, "-W", "error", "-c", MANY, str(out), how]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "(4000, 0)\n"
    found = [row[0] for row in read(out)[1:]]
    assert sorted(found) == [f"{number:04}" for number in range(4000)]
    assert (found == sorted(found)) == (how == "merge")


@pytest.mark.parametrize("options", [PLAIN, PARQUET], ids=["csv", "parquet"])
def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: ClassifyOptions
) -> None:
    monkeypatch.setattr("jobs.classification.parquet.ROWS_PER_GROUP", 100)
    monkeypatch.setattr(module, "MAX_OPEN_FILES", 4)

    def peak(count: int, merge: bool) -> int:
        """Peak bytes held by Python while 10 parts of `count` rows are assembled."""
        table = ResumableTable(tmp_path / f"{count}-{merge}.out", IDENTITY, options)
        for number in range(10):
            rows = [image(f"{row:06}-{number}" + 50 * "x") for row in range(count)]
            table.write(number, digest(number), rows)
        del rows
        tracemalloc.start()
        table.finish(10, merge=merge)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    for merge in (False, True):
        peak(10, merge)  # warm up: imports and caches
        assert peak(1000, merge) < peak(100, merge) + 100_000  # 1,000 rows alone take three times that


# Rejected -----------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A table with two finished parts."""
    table = ResumableTable(tmp_path / "out.csv", IDENTITY, PLAIN)
    for number in range(2):
        table.write(number, digest(number), SPLITS[number])
    return table.path


def test_finished_parts_are_reused(begun: Path) -> None:
    written = {path: path.stat().st_mtime_ns for path in (begun.parent / "out.csv.parts").glob("part-*")}
    checksums = [f"{zlib.crc32(path.read_bytes()):08x}" for path in sorted(written)]
    assert {path.name for path in written} == {
        f"part-00000{n}-{digest(n)[:16]}-{checksums[n]}.csv" for n in range(2)
    }
    table = ResumableTable(begun, IDENTITY, PLAIN)
    assert [table.is_finished(number, digest(number)) for number in range(3)] == [True, True, False]
    table.write(2, digest(2), SPLITS[2])
    assert table.is_finished(2, digest(2))
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert not begun.exists()
    assert table.finish(3) == (4, 1)
    assert begun.read_bytes() == TABLE


@pytest.mark.parametrize(
    ("identity", "options", "changed"),
    [
        ({**IDENTITY, "model": "abd"}, PLAIN, "model"),
        ({**IDENTITY, "model": "abd", "seed": 0}, PLAIN, "model and seed (None, now 0)"),
        ({**IDENTITY, "more": None}, PLAIN, "more"),
        ({"model": "abc", "fit": "pad", "scale": 0.1}, PLAIN, "seed"),
        (IDENTITY, ClassifyOptions(topk=2), "--topk (1, now 2)"),
        (IDENTITY, ClassifyOptions(threshold=0.5), "--threshold (None, now 0.5)"),
        (IDENTITY, ClassifyOptions(spreadsheet_safe=True), "--spreadsheet-safe (False, now True)"),
        (IDENTITY, PARQUET, "--format (csv, now parquet)"),
    ],
)
def test_parts_of_another_classification_are_rejected(
    begun: Path, identity: dict[str, Any], options: ClassifyOptions, changed: str
) -> None:
    message = f"out.csv.parts holds an unfinished classification with other {changed}; remove it, give --overwrite, or"
    with pytest.raises(JobError, match=re.escape(message)):
        ResumableTable(begun, identity, options)
    assert ResumableTable(begun, IDENTITY, PLAIN).is_finished(0, digest(0))
    table = ResumableTable(begun, identity, replace(options, overwrite=True))
    assert not table.is_finished(0, digest(0))
    assert names_in(table.scratch) == ["fingerprint.json"]


def test_parts_of_a_cluster_of_0_1_0_are_reused(tmp_path: Path) -> None:
    """It wrote the option `--device auto`, where the device is now. Its workers had no GPU."""
    path = tmp_path / "out.csv"
    ResumableTable(path, {**IDENTITY, "device": "auto"}, PLAIN).write(0, digest(0), SPLITS[0])
    with pytest.raises(JobError, match=r"with other device \(cpu, now NVIDIA H100 in bf16\); remove it"):
        ResumableTable(path, {**IDENTITY, "device": "NVIDIA H100 in bf16"}, PLAIN)
    assert ResumableTable(path, {**IDENTITY, "device": "cpu"}, PLAIN).is_finished(0, digest(0))


def test_parts_of_changed_files_are_rejected(begun: Path) -> None:
    message = "holds an unfinished classification of other files: .* changed since; remove it, give --overwrite, or"
    table = ResumableTable(begun, IDENTITY, PLAIN)
    assert table.is_finished(0, digest(0))
    with pytest.raises(JobError, match=message):
        table.is_finished(1, digest(7))
    with pytest.raises(JobError, match=message):
        table.finish(1)
    assert not begun.exists()
    assert table.is_finished(1, digest(1))
    table = ResumableTable(begun, IDENTITY, replace(PLAIN, overwrite=True))
    assert not table.is_finished(1, digest(7))
    table.write(1, digest(7), [image("other.png")])
    assert table.finish(2) == (2, 1)
    assert [row[0] for row in read(begun)[1:]] == ["a.png", "b.png", "other.png"]


def test_overwrite_ignores_surplus_parts(begun: Path) -> None:
    assert ResumableTable(begun, IDENTITY, replace(PLAIN, overwrite=True)).finish(1) == (1, 1)
    assert names_in(begun.parent) == ["out.csv"]


def test_existing_outputs_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(JobError, match=r"is a folder; give the name of a file, such as .*/out/out\.csv$"):
        ResumableTable(tmp_path / "out", IDENTITY, replace(PLAIN, overwrite=True))
    with pytest.raises(JobError, match=r"give the name of a file, such as .*/out/out\.parquet$"):
        ResumableTable(tmp_path / "out", IDENTITY, replace(PARQUET, overwrite=True))
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(JobError, match="mine already exists; give --overwrite to replace it, or another name"):
        ResumableTable(tmp_path / "mine", IDENTITY, PLAIN)
    assert names_in(tmp_path) == ["mine", "out"]


def test_old_table_stays_until_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    table = ResumableTable(out, IDENTITY, replace(PLAIN, overwrite=True))
    for number in range(3):
        table.write(number, digest(number), SPLITS[number])
        assert out.read_text() == "mine"
    table.finish(3)
    assert out.read_bytes() == TABLE
    with pytest.raises(JobError, match="already exists"):
        ResumableTable(out, {**IDENTITY, "model": "other"}, PLAIN)


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folder_is_never_removed(tmp_path: Path, overwrite: bool) -> None:
    mine = tmp_path / "out.csv.parts" / "mine"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(JobError, match=r"out.csv.parts is not an unfinished classification: it has no fingerprint"):
        ResumableTable(tmp_path / "out.csv", IDENTITY, replace(PLAIN, overwrite=overwrite))
    assert mine.read_text() == "mine"


def test_damaged_fingerprint_is_rejected(begun: Path) -> None:
    (begun.parent / "out.csv.parts" / "fingerprint.json").write_text('{"model": ')
    with pytest.raises(JobError, match=r"out\.csv\.parts has a damaged fingerprint\.json \(.*\); remove it, give"):
        ResumableTable(begun, IDENTITY, PLAIN)


# Damage -------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    cut = {
        "a bit": bytes([content[0] ^ 1]) + content[1:],
        "a label": content.replace(b",a,", b",b,", 1),
        "cut": content[:-4],
        "cut to nothing": b"",
        "a row less": content.partition(b"\n")[2],
        "a row more": content + content.partition(b"\n")[0] + b"\n",
        "a quote": b'"' + content,
        "zeros": bytes(len(content)),
        "not UTF-8": b"\xff" + content[1:],
    }[how]
    assert cut != content
    path.write_bytes(cut)


HOW = ["a bit", "a label", "cut", "cut to nothing", "a row less", "a row more", "a quote", "zeros", "not UTF-8"]


@pytest.mark.parametrize("how", HOW)
def test_damaged_part_is_made_again(begun: Path, how: str) -> None:
    part = next((begun.parent / "out.csv.parts").glob("part-000000-*"))
    damage(part, how)
    table = ResumableTable(begun, IDENTITY, PLAIN)
    assert table.dropped == 1
    assert [table.is_finished(number, digest(number)) for number in range(3)] == [False, True, False]
    assert save(table, SPLITS) == (4, 1)
    assert begun.read_bytes() == TABLE


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_part_that_is_damaged_meanwhile_makes_no_table(begun: Path, how: str, merge: bool) -> None:
    table = ResumableTable(begun, IDENTITY, PLAIN)
    table.write(2, digest(2), SPLITS[2])
    damage(next(table.scratch.glob("part-000000-*")), how)
    with pytest.raises(WorkFailedError, match=r"part-000000-\w+-\w+\.csv is damaged; run the same command again"):
        table.finish(3, merge=merge)
    assert not begun.exists() and not begun.with_name(".out.csv.finished").exists()
    assert save(ResumableTable(begun, IDENTITY, PLAIN), SPLITS) == (4, 1)
    assert begun.read_bytes() == TABLE


def test_parts_of_an_older_version_are_reused_if_they_are_whole(begun: Path) -> None:
    """Their names have no checksum: only the form of their rows can be checked."""
    for number, part in enumerate(sorted((begun.parent / "out.csv.parts").glob("part-*"))):
        part.rename(part.with_name(f"part-{number:06}-{digest(number)[:16]}.csv"))
    fingerprint = begun.parent / "out.csv.parts" / "fingerprint.json"
    values = json.loads(fingerprint.read_text())
    del values["crc32"]
    fingerprint.write_text(json.dumps(values))
    damage(begun.parent / "out.csv.parts" / f"part-000001-{digest(1)[:16]}.csv", "cut")
    table = ResumableTable(begun, IDENTITY, PLAIN)
    assert [table.is_finished(number, digest(number)) for number in range(2)] == [True, False]
    assert save(table, SPLITS) == (4, 1)
    assert begun.read_bytes() == TABLE


def test_each_flipped_bit_of_the_side_files_is_found(begun: Path) -> None:
    """None is a crash; where the result is the same, the flip changed the key of the checksum alone."""
    save(ResumableTable(begun, IDENTITY, PLAIN), SPLITS)
    note, scratch = begun.with_name(".out.csv.finished"), begun.with_name("out.csv.parts")
    whole, believed = note.read_bytes(), 0
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        note.write_bytes(flipped)
        try:
            assert ResumableTable(begun, IDENTITY, PLAIN).finish(3) == (4, 1)
            believed += 1
        except JobError as error:
            assert "out.csv already exists" in str(error)
    assert believed < 8 * len('"crc32"')
    assert not scratch.exists() and begun.read_bytes() == TABLE


def test_temporary_files_are_removed_with_the_parts(tmp_path: Path) -> None:
    table = ResumableTable(tmp_path / "out.csv", IDENTITY, PLAIN)
    (table.scratch / "runs").mkdir()
    (table.scratch / "runs" / "0.txt").write_text("sorted names")
    (table.scratch / "linked").symlink_to(tmp_path)
    assert save(table, SPLITS) == (4, 1)
    assert names_in(tmp_path) == ["out.csv"]
