"""Helpers for tests of the table: unusual names, a small table, and writing its parts as the job does."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from hypothesis import example, settings
from hypothesis import strategies as st

from jobs.classification.table import ResumableTable, error_row, ok_row
from jobs.options import ClassifyOptions

IDENTITY: dict[str, str | int | float | bool | None] = {"model": "abc", "fit": "pad", "scale": 0.1, "seed": None}
PLAIN = ClassifyOptions()
PARQUET = ClassifyOptions(format="parquet")

# Relative paths: any bytes except NUL, as Python represents them.
names = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.lists(st.sampled_from([*",\"'\r\n\t =+-@#;\\\x1a\x85\ufeff\u2028é", "NA", "001"]), min_size=1).map("".join),
    st.binary(min_size=1).map(lambda name: name.replace(b"\0", b"?").decode("utf-8", "surrogateescape")),
)
UNUSUAL = [
    *("a,b", 'q"q', '"', '""', "n\nl", "c\rr", "\r", "\n", "c\r\nl", "\r\n", " lead", "trail ", " ", "\t", "=1"),
    *("+1", "-1", "@a", "NA", "nan", "null", "001", "1e5", "True", "#c", "\x1a", "\x7f", "\x85", "\u2028", "\ufeff"),
    *("ルフィ", "😀", "a\\b", "'", "''", ";", "filename"),
]
NOT_UTF8 = ["caf\udce9", "\udcff\r\udcfe", "\udc80,"]
texts = st.one_of(st.just(""), names)


def digest(number: int) -> str:
    return f"{number:064x}"[::-1]


def save(table: ResumableTable, parts: Sequence[Sequence[Sequence[str]]], *, merge: bool = False) -> tuple[int, int]:
    """Write the parts that are not finished, then finish the table."""
    for number, rows in enumerate(parts):
        if not table.is_finished(number, digest(number)):
            table.write(number, digest(number), rows)
    return table.finish(len(parts), merge=merge)


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def names_in(folder: Path) -> list[str]:
    """The names of the files, without the note that each finished table has beside it."""
    names = {path.name for path in folder.iterdir()}
    return sorted(names - {f".{name}.finished" for name in names})


def image(name: str, label: str = "a", prob: float = 0.75) -> list[str]:
    return ok_row(name, [(label, prob)], PLAIN)


SPLITS = [
    [image("a.png"), error_row("b.png", "empty: no bytes", 1)],
    [image("c\r.png", "red, green"), image("caf\udce9.png")],
    [image("z.png")],
]
TABLE = (
    b"filename,status,label,prob,error\na.png,ok,a,0.750000,\nb.png,error,,,empty: no bytes\n"
    b'"c\r.png",ok,"red, green",0.750000,\ncaf\xe9.png,ok,a,0.750000,\nz.png,ok,a,0.750000,\n'
)


def with_unusual_names(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test on UNUSUAL and NOT_UTF8, too, as file names and labels."""
    test = settings(max_examples=40)(test)
    for some in (["a"], UNUSUAL, NOT_UTF8):
        test = example(cells=[(name, text) for name in some for text in ("", name)])(test)
    return test


def has_invalid_utf8(cells: list[tuple[str, str]]) -> bool:
    """Return whether some text is not valid UTF-8."""
    return any("\ud800" <= letter <= "\udfff" for text in sum(cells, ()) for letter in text)
