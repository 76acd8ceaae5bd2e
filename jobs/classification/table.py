"""The table of a classification: written in finished parts, which a rerun skips, and put together at the end.

While a classification that ends in OUT.csv runs, there are

    OUT.csv.parts/fingerprint.json       of what model and options the parts are
    OUT.csv.parts/part-000012-<tag>.csv  a finished part; the tag stands for the files that it is about
    .OUT.csv.finished                    only while the end is made: which OUT.csv is the one of these parts

Each appears whole or not at all. The end is made in this order: OUT.csv under a temporary name; the note
`.OUT.csv.finished`, with the hash of that file; the rename; the parts go; the note goes. So wherever a kill comes,
either the parts are all there, or the note and the file that it describes are. A note that is left over describes
another file than the one that is there, or none: it says nothing, and the next end replaces it.
"""

import csv
import hashlib
import heapq
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from jobs.errors import JobError
from logpose.common.files import atomic_writer, write_atomically

# Names of files may hold bytes that are no UTF-8; they come out of the CSV as they went in.
ERRORS = "surrogateescape"
UNKNOWN = "unknown"  # the label of an image whose best probability is below the threshold
FINGERPRINT = "fingerprint.json"
PART = re.compile(r"part-(\d{6,})-([0-9a-f]+)\.csv")
TAG = 16  # hex digits of a part's digest that go into its name: 64 bits, for a few thousand parts
FILES_OPEN = 64  # parts merged at a time, well below the 256 open files that some systems allow
# A bare "\r" ends a line for pandas and for csv.reader, and csv.writer leaves it unquoted before Python 3.11.9.
QUOTED = re.compile('[,"\r\n]')
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what OWASP says makes a cell a formula


@dataclass(frozen=True)
class TableOptions:
    """How the table is written.

    topk              labels in a row
    threshold         a best probability below it makes the label `unknown`; None for never
    spreadsheet_safe  put a ' before text that a spreadsheet would run as a formula; for CSV only
    format            of the final file
    """

    topk: int = 1
    threshold: float | None = None
    spreadsheet_safe: bool = False
    format: Literal["csv", "parquet"] = "csv"

    def __post_init__(self) -> None:
        if self.spreadsheet_safe and self.format == "parquet":
            raise JobError(
                "--spreadsheet-safe is for CSV, and text in a Parquet file is never a formula;"
                " leave it out, or give --format csv"
            )

    def by_flag(self) -> dict[str, int | float | str | None]:
        """The options under their names on the command line, as messages have them."""
        return {
            "--topk": self.topk,
            "--threshold": self.threshold,
            "--spreadsheet-safe": self.spreadsheet_safe,
            "--format": self.format,
        }


def header(topk: int) -> list[str]:
    """The columns: `filename,status,label,prob,error`, then `label_2,prob_2,…` up to `topk`."""
    more = [f"{column}_{rank}" for rank in range(2, topk + 1) for column in ("label", "prob")]
    return ["filename", "status", "label", "prob", "error", *more]


def ok_row(filename: str, ranked: Sequence[tuple[str, float]], options: TableOptions) -> list[str]:
    """The row of an image: its `topk` likeliest labels with their probabilities, best first."""
    (label, share), *others = ranked
    prob = f"{share:.6f}"
    # What is printed decides, so that the table agrees with itself: float32(0.9) is a little below 0.9.
    if options.threshold is not None and float(prob) < options.threshold:
        label = UNKNOWN
    more = [text for other, share in others for text in (other, f"{share:.6f}")]
    return [filename, "ok", label, prob, "", *more]


def error_row(filename: str, reason: str, topk: int) -> list[str]:
    """The row of a file that cannot be read, as wide as the others."""
    return [filename, "error", "", "", reason, *[""] * (2 * (topk - 1))]


class _Note(NamedTuple):
    """What `.OUT.csv.finished` says of the file that it describes."""

    fingerprint: dict[str, Any]
    tags: list[str]  # of the parts that it was made of
    ok: int
    error: int
    hash: str  # of its bytes


class PartedTable:
    """The table at `path` in the making."""

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, str | int | float | bool | None],
        options: TableOptions,
        *,
        overwrite: bool,
    ) -> None:
        """Claim `path` and the parts of an earlier run.

        `identity` is what the rows depend on beside the files and the options; its keys are what a message calls
        them. Raises JobError if the place is taken, the parts are of something else, or pyarrow is needed and
        missing. With `overwrite`, parts of something else are removed; a table at `path` stays till `finish`.
        """
        self.path = path
        self.scratch = path.with_name(path.name + ".parts")  # also for the job's own temporary files
        self._note_path = path.with_name(f".{path.name}.finished")
        self._overwrite = overwrite
        self._columns = header(options.topk)
        self._save = _saver(options)
        self._fingerprint = {**identity, **options.by_flag()}
        if path.is_dir():
            kind, example = "CSV" if options.format == "csv" else "Parquet", path / f"out.{options.format}"
            raise JobError(f"{path} is a folder; give the name of a {kind} file, such as {example}")
        self._note = None if overwrite else self._found_note()
        if not self._note:
            if path.exists() and not overwrite:
                raise self._is_there()
            self._refuse_others()
        self.scratch.mkdir(parents=True, exist_ok=True)
        write_atomically(self.scratch / FINGERPRINT, json.dumps(self._fingerprint, indent=1) + "\n")
        self._tags = self._found_tags()  # of each finished part by its number

    def finished(self, number: int, digest: str) -> bool:
        """Whether this part was finished, now or by an earlier run, of the files with this hex digest.

        Raises JobError if it was finished of other files; with `overwrite` that part is removed instead.
        """
        tag = digest[:TAG]
        if self._note:  # the parts may be gone, but the table is there
            if self._note.tags[number : number + 1] != [tag]:
                raise self._is_there()
            return True
        if self._tags.get(number, tag) != tag:
            if not self._overwrite:
                raise self._has_changed()
            self._part(number).unlink()
            del self._tags[number]
        return number in self._tags

    def write(self, number: int, digest: str, rows: Iterable[Sequence[str]]) -> None:
        """Finish one part: its rows are on the disk, under a name with their files' hex digest, or nothing is."""
        tag = digest[:TAG]
        write_atomically(self.scratch / f"part-{number:06}-{tag}.csv", "".join(map(_line, rows)))
        self._tags[number] = tag

    def finish(self, parts: int, *, merge: bool = False) -> tuple[int, int]:
        """Put parts 0..parts-1 together under the final name and remove them; returns the rows (ok, error).

        With `merge`, each part is sorted by filename, and so is the table then, in the order of Python's str;
        else one part follows the other. Memory does not grow with the rows. Raises JobError if there are more
        parts than that: their files are no longer there.
        """
        if not self._note:
            if not self._overwrite and any(number >= parts for number in self._tags):
                raise self._has_changed()
            self._note = self._put_together(parts, merge)
        elif len(self._note.tags) != parts:
            raise self._is_there()
        _remove(self.scratch)
        self._note_path.unlink()  # from here on nothing is left to go on from
        return self._note.ok, self._note.error

    def abandon(self) -> None:
        """After a failure: leave no folder without a finished part that a rerun could go on from."""
        if not self._tags and not self._note:
            _remove(self.scratch)

    def _put_together(self, parts: int, merge: bool) -> _Note:
        paths = [self._part(number) for number in range(parts)]
        rows = _merged(paths, self.scratch) if merge else (row for path in paths for row in _rows(path))
        statuses: Counter[str] = Counter()
        with atomic_writer(self.path) as file:
            self._save(file, self._columns, _counted(rows, statuses))
            file.flush()
            tags = [self._tags[number] for number in range(parts)]
            hashed = _hash(Path(file.name))
            note = _Note(self._fingerprint, tags, statuses["ok"], statuses["error"], hashed)
            write_atomically(self._note_path, json.dumps(note._asdict()) + "\n")
        return note

    def _part(self, number: int) -> Path:
        return self.scratch / f"part-{number:06}-{self._tags[number]}.csv"

    def _found_tags(self) -> dict[int, str]:
        matches = (PART.fullmatch(path.name) for path in self.scratch.iterdir())
        return {int(match[1]): match[2] for match in matches if match}

    def _found_note(self) -> _Note | None:
        """The note that a kill left, if the table at `path` is the one it describes, and of this same command."""
        found = _read_json(self._note_path)
        if found.get("fingerprint") != self._fingerprint or not self.path.exists():
            return None
        note = _Note(**found)
        return note if _hash(self.path) == note.hash else None

    def _refuse_others(self) -> None:
        """Leave the parts of the same classification; refuse those of another, or remove them as told."""
        if not self.scratch.exists():
            return
        found = _read_json(self.scratch / FINGERPRINT)
        ours = (self.scratch / FINGERPRINT).exists()
        if not ours and any(path.name != f".{FINGERPRINT}.tmp" for path in self.scratch.iterdir()):
            raise JobError(
                f"{self.scratch} is no unfinished classification: it has no {FINGERPRINT};"
                f" remove it, or choose another name than {self.path.name}"
            )
        names = {**self._fingerprint, **found}
        changed = [name for name in names if _item(found, name) != _item(self._fingerprint, name)]
        if changed and not self._overwrite and self._found_tags():
            raise JobError(
                f"{self.scratch} holds an unfinished classification with other {' and '.join(changed)};"
                f" remove it, give --overwrite, or choose another name than {self.path.name}"
            )
        if changed:
            _remove(self.scratch)

    def _is_there(self) -> JobError:
        return JobError(f"{self.path} is there already; give --overwrite to replace it, or another name")

    def _has_changed(self) -> JobError:
        return JobError(
            f"{self.scratch} holds an unfinished classification of other files: those to classify have changed since;"
            f" remove it, give --overwrite, or choose another name than {self.path.name}"
        )


def _saver(options: TableOptions) -> Callable[[IO[bytes], Sequence[str], Iterable[Sequence[str]]], None]:
    """What writes a table of this format. pyarrow, which is optional, comes in only here."""
    if options.format == "parquet":
        from jobs.classification.parquet import write_parquet

        return write_parquet
    return _write_defused_csv if options.spreadsheet_safe else _write_csv


def _write_csv(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    file.write(_line(columns).encode())
    for row in rows:
        file.write(_line(row).encode("utf-8", ERRORS))


def _write_defused_csv(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """No probability and no status begins like a formula, so every cell may be treated as text."""
    _write_csv(file, columns, ([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in row] for row in rows))


def _line(row: Sequence[str]) -> str:
    """One row of CSV, the same in every version of Python."""
    return ",".join(map(_quoted, row)) + "\n"


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if QUOTED.search(cell) else cell


def _rows(path: Path) -> Iterator[list[str]]:
    """The rows of one part, read in small blocks."""
    with path.open(encoding="utf-8", errors=ERRORS, newline="") as file:
        yield from csv.reader(file)


def _merged(paths: Sequence[Path], folder: Path) -> Iterator[list[str]]:
    """The rows of sorted files, sorted. Many files are merged in rounds, into fewer files in `folder`."""
    level = 0
    while len(paths) > FILES_OPEN:
        groups = [paths[start : start + FILES_OPEN] for start in range(0, len(paths), FILES_OPEN)]
        paths = [folder / f"merged-{level}-{number:06}.csv" for number in range(len(groups))]
        for path, group in zip(paths, groups, strict=True):
            with path.open("w", encoding="utf-8", errors=ERRORS, newline="") as file:
                file.writelines(map(_line, _merged(group, folder)))
        level += 1
    return heapq.merge(*map(_rows, paths), key=itemgetter(0))


def _counted(rows: Iterable[list[str]], statuses: Counter[str]) -> Iterator[list[str]]:
    for row in rows:
        statuses[row[1]] += 1
        yield row


def _remove(folder: Path) -> None:
    """Remove a folder of parts. The fingerprint goes last: while anything is in there, it says whose it is."""
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != FINGERPRINT:
            path.unlink()
    (folder / FINGERPRINT).unlink(missing_ok=True)
    folder.rmdir()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """What a file of ours holds; nothing if it is not there or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _item(values: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """A value that says whether it is there: None is one too."""
    return name in values, values.get(name)
