"""The table of a classification: written in parts, which a rerun skips, and merged at the end.

While a classification into OUT.csv runs, there are

    OUT.csv.parts/fingerprint.json             the model and the options that the parts were made with
    OUT.csv.parts/part-000012-<tag>-<crc>.csv  a finished part; the tag is a hash of its files, crc its checksum

and from the last step on, to tell a rerun that there is nothing to do,

    .OUT.csv.finished                          the hash of the complete OUT.csv, and what it was made from

Each file is written atomically. The last step writes OUT.csv under a temporary name, writes `.OUT.csv.finished` with
the hash of that file, renames it, and deletes the parts. A kill at any moment leaves either all parts, or OUT.csv with
the marker that describes it. A stale marker fails its hash check and is ignored, then overwritten.
"""

import csv
import hashlib
import heapq
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from jobs.errors import JobError, WorkFailedError
from jobs.options import ClassifyOptions
from logpose.common.files import (
    NotAFileError,
    atomic_writer,
    errors_at,
    make_folder,
    open_regular,
    remove_folder,
    write_atomically,
)
from logpose.common.outputs import output_file
from logpose.common.records import RecordError, parse_record, read_record, write_record
from pipeline.faults import is_there, read_stored

# File names may hold bytes that are not valid UTF-8; the CSV holds these bytes unchanged.
ENCODING_ERRORS = "surrogateescape"
UNKNOWN = "unknown"  # the label of an image whose best probability is below the threshold
FINGERPRINT_FILE = "fingerprint.json"
PART_NAME = re.compile(r"part-(\d{6,})-([0-9a-f]+)(?:-([0-9a-f]{8}))?\.csv")  # 0.1.0 wrote no checksum
TAG_DIGITS = 16  # hex digits of a part's digest in its file name: 64 bits, for a few thousand parts
MAX_UNREADABLE = 10_000  # names of files in the marker
MAX_OPEN_FILES = 64  # parts merged at a time, well below the limit of 256 open files on some systems
# A bare "\r" ends a line for pandas and csv.reader, but csv.writer does not quote it before Python 3.11.9.
NEEDS_QUOTES = re.compile('[,"\r\n]')
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")  # OWASP, "CSV Injection"

Format: TypeAlias = Literal["csv", "parquet"]


def header(topk: int) -> list[str]:
    """Return the columns: `filename,status,label,prob,error`, then `label_2,prob_2,…` up to `topk`."""
    more = [f"{column}_{rank}" for rank in range(2, topk + 1) for column in ("label", "prob")]
    return ["filename", "status", "label", "prob", "error", *more]


def ok_row(filename: str, ranked: Sequence[tuple[str, float]], options: ClassifyOptions) -> list[str]:
    """Return the row of an image: its `topk` most likely labels with their probabilities, best first."""
    (label, probability), *others = ranked
    prob = f"{probability:.6f}"
    # Compare the printed number, so that the table is consistent: float32(0.9) is slightly below 0.9.
    if options.threshold is not None and float(prob) < options.threshold:
        label = UNKNOWN
    more = [text for other, probability in others for text in (other, f"{probability:.6f}")]
    return [filename, "ok", label, prob, "", *more]


def error_row(filename: str, reason: str, topk: int) -> list[str]:
    """Return the row of a file that cannot be read, with as many cells as the others."""
    return [filename, "error", "", "", reason, *[""] * (2 * (topk - 1))]


class _Marker(NamedTuple):
    """The content of `.OUT.csv.finished`; the field names are its JSON keys."""

    fingerprint: dict[str, Any]
    tags: list[str]  # of the parts of the table
    ok: int
    error: int
    hash: str  # of the table's bytes
    unreadable: tuple[str, ...] = ()  # the first files that a rerun looks at again; none in an older marker


class _Part(NamedTuple):
    """A finished part: the tag of its files, and its CRC-32 in hex, None in a part of 0.1.0."""

    path: Path
    tag: str
    crc: str | None


class ResumableTable:
    """A table at `path` that is written in parts and can be resumed.

    is_complete  whether an earlier run has finished it: there is nothing to do, if the files are the same
    dropped      damaged parts of an earlier run, which are made again
    unreadable   the first files of a complete table that could not be opened
    """

    def __init__(
        self, path: Path, identity: Mapping[str, str | int | float | bool | None], options: ClassifyOptions
    ) -> None:
        """Claim `path`, and the parts of an interrupted run.

        `identity` holds whatever else the rows depend on, by the name that messages use. With `options.overwrite`,
        parts of another classification are removed; a table at `path` stays until `finish`.
        Raises JobError if `path` exists, if there are parts of another classification, if the options contradict each
        other, or without pyarrow if needed; PathError if `path` is no plain file.
        """
        table_format = check_format(path, options)
        path = output_file(path)
        self.path = path
        self.scratch = path.with_name(path.name + ".parts")  # also for temporary files of the job
        self._marker_path = path.with_name(f".{path.name}.finished")
        self._overwrite = options.overwrite
        self._columns = header(options.topk)
        self._save = _writer_for(table_format, options.spreadsheet_safe)
        self._fingerprint = {**identity, **table_settings(options, table_format)}
        self._marker = None if self._overwrite else self._find_marker()
        self.is_complete, self.dropped = self._marker is not None, 0
        self.unreadable = self._marker.unreadable if self._marker else ()
        if not self._marker:
            if is_there(path) and not self._overwrite:
                raise self._exists_error()
            self._check_existing_parts()
        make_folder(self.scratch)
        write_record(self.scratch / FINGERPRINT_FILE, self._fingerprint)
        self._parts = self._find_parts()  # the finished ones, by number

    def is_finished(self, number: int, digest: str) -> bool:
        """Return whether this part, of files with this hex digest, is finished, by this run or an earlier one.

        Raises JobError if it was finished for other files; with `overwrite` that part is removed instead.
        """
        tag = digest[:TAG_DIGITS]
        if self._marker:  # the table is complete; its parts may be deleted already
            if self._marker.tags[number : number + 1] != [tag]:
                raise self._exists_error()
            return True
        if number in self._parts and self._parts[number].tag != tag:
            if not self._overwrite:
                raise self._changed_error()
            self._parts.pop(number).path.unlink()
        return number in self._parts

    def write(self, number: int, digest: str, rows: Iterable[Sequence[str]]) -> None:
        """Write a finished part, atomically. Raises OSError."""
        tag, content = digest[:TAG_DIGITS], "".join(map(_csv_line, rows)).encode("utf-8", ENCODING_ERRORS)
        crc = f"{zlib.crc32(content):08x}"
        part = _Part(self.scratch / f"part-{number:06}-{tag}-{crc}.csv", tag, crc)
        write_atomically(part.path, content)
        self._parts[number] = part

    def finish(self, parts: int, *, merge: bool = False) -> tuple[int, int]:
        """Write parts 0..parts-1 to the final file and delete them; return the number of rows (ok, error).

        With `merge`, each part must be sorted by filename, and the table is then too, in the order of Python's str;
        otherwise the parts are concatenated. Memory does not grow with the rows.
        Raises JobError if there are more parts: some files have disappeared since; WorkFailedError if one is damaged.
        """
        if not self._marker:
            if not self._overwrite and any(number >= parts for number in self._parts):
                raise self._changed_error()
            self._marker = self._assemble(parts, merge)
        elif len(self._marker.tags) != parts:
            raise self._exists_error()
        _remove(self.scratch)
        return self._marker.ok, self._marker.error

    def remove_if_empty(self) -> None:
        """After a failure, remove the folder of parts unless it holds something to resume from."""
        if not self._parts:
            _remove(self.scratch)

    def _assemble(self, parts: int, merge: bool) -> _Marker:
        found = [self._parts[number] for number in range(parts)]
        rows = self._merge(found) if merge else (row for part in found for row in self._read(part))
        statuses: Counter[str] = Counter()
        unreadable: list[str] = []
        with atomic_writer(self.path) as file:
            self._save(file, self._columns, _count(rows, statuses, unreadable))
            file.flush()
            tags = [part.tag for part in found]
            counts = statuses["ok"], statuses["error"]
            marker = _Marker(self._fingerprint, tags, *counts, _hash(Path(file.name)), tuple(unreadable))
            write_record(self._marker_path, marker._asdict())
        return marker

    def _find_parts(self) -> dict[int, _Part]:
        """Return the finished parts. Remove damaged ones, and those with files to try again: see `_is_final`."""
        parts: dict[int, _Part] = {}
        for path in sorted(self.scratch.iterdir()):
            if not (match := PART_NAME.fullmatch(path.name)):
                continue
            part = _Part(path, match[2], match[3])
            try:
                again = sum(not _is_final(row) for row in self._read(part))
            except WorkFailedError:
                path.unlink()
                self.dropped += 1
                continue
            if again:
                path.unlink()
            else:
                parts[int(match[1])] = part
        return parts

    def _read(self, part: _Part) -> Iterator[list[str]]:
        """Read the rows of a part one by one. Raises WorkFailedError where it is damaged, at the latest at its end."""
        crc = 0

        def lines() -> Iterator[str]:
            nonlocal crc
            with errors_at(part.path), os.fdopen(open_regular(part.path), "rb") as file:
                for line in file:
                    crc = zlib.crc32(line, crc)
                    yield line.decode("utf-8", ENCODING_ERRORS)

        try:
            for row in csv.reader(lines()):
                if len(row) != len(self._columns) or row[1] not in ("ok", "error"):
                    raise self._damage_error(part)
                yield row
        except csv.Error as error:
            raise self._damage_error(part) from error
        if part.crc not in (None, f"{crc:08x}"):
            raise self._damage_error(part)

    def _merge(self, parts: Sequence[_Part]) -> Iterator[list[str]]:
        """Merge the rows of sorted parts. Many parts are merged in rounds, into fewer files."""
        level = 0
        while len(parts) > MAX_OPEN_FILES:
            groups = [parts[start : start + MAX_OPEN_FILES] for start in range(0, len(parts), MAX_OPEN_FILES)]
            paths = [self.scratch / f"merged-{level}-{number:06}.csv" for number in range(len(groups))]
            for path, group in zip(paths, groups, strict=True):
                with path.open("w", encoding="utf-8", errors=ENCODING_ERRORS, newline="") as file:
                    file.writelines(map(_csv_line, self._merge(group)))
            parts = [_Part(path, "", None) for path in paths]
            level += 1
        return heapq.merge(*map(self._read, parts), key=itemgetter(0))

    def _find_marker(self) -> _Marker | None:
        """Return the marker left by a kill, if it describes the table at `path` and the same classification."""
        try:
            record = read_stored(partial(read_record, self._marker_path), self._marker_path)
            marker = parse_record(_Marker, record)
        except (RecordError, FileNotFoundError, NotAFileError):  # damaged, or none
            return None
        if _current(marker.fingerprint) != self._fingerprint or not self.path.is_file():
            return None
        return marker if _hash(self.path) == marker.hash else None

    def _check_existing_parts(self) -> None:
        """Accept parts of the same classification. Remove others with `overwrite`, else raise JobError."""
        if not is_there(self.scratch):
            return
        fingerprint, damage = self.scratch / FINGERPRINT_FILE, ""
        found: dict[str, Any] = {}
        try:
            found = _current(read_record(fingerprint))
        except FileNotFoundError:
            pass
        except RecordError as error:
            damage = f"{self.scratch} has a damaged {FINGERPRINT_FILE} ({error})"
        more = [path.name for path in self.scratch.iterdir() if path.name != f".{FINGERPRINT_FILE}.tmp"]
        if more and not is_there(fingerprint):
            raise JobError(
                f"{self.scratch} is not an unfinished classification: it has no {FINGERPRINT_FILE};"
                f" remove it, or choose another name than {self.path.name}"
            )
        names = {**self._fingerprint, **found}
        missing = object()  # None is a value
        changed = [name for name in names if found.get(name, missing) != self._fingerprint.get(name, missing)]
        if changed and not self._overwrite and any(PART_NAME.fullmatch(path.name) for path in self.scratch.iterdir()):
            others = " and ".join(self._describe_change(name, found) for name in changed)
            what = damage or f"{self.scratch} holds an unfinished classification with other {others}"
            raise JobError(f"{what}; remove it, give --overwrite, or choose another name than {self.path.name}")
        if changed:
            _remove(self.scratch)

    def _describe_change(self, name: str, found: Mapping[str, Any]) -> str:
        """The name, with the values before and now if both are known, and can be read: a model's is a hash."""
        if name == "model" or name not in found or name not in self._fingerprint:
            return name
        return f"{name} ({found[name]}, now {self._fingerprint[name]})"

    def _damage_error(self, part: _Part) -> WorkFailedError:
        return WorkFailedError(f"{part.path} is damaged; run the same command again, which makes it again")

    def _exists_error(self) -> JobError:
        return JobError(f"{self.path} already exists; give --overwrite to replace it, or another name")

    def _changed_error(self) -> JobError:
        return JobError(
            f"{self.scratch} holds an unfinished classification of other files: the images have changed since;"
            f" remove it, give --overwrite, or choose another name than {self.path.name}"
        )


def table_settings(options: ClassifyOptions, table_format: Format) -> dict[str, int | float | str | None]:
    """Return the options that the table depends on, by flag, for the fingerprint and messages."""
    return {
        "--topk": options.topk,
        "--threshold": options.threshold,
        "--spreadsheet-safe": options.spreadsheet_safe,
        "--format": table_format,
    }


def check_format(path: Path, options: ClassifyOptions) -> Format:
    """Return the format of the table at `path`: that of the options, or the one that its ending tells.

    Raises JobError if `path` is a folder, or if the options contradict each other.
    """
    table_format: Format = options.format or ("parquet" if path.suffix.lower() in (".parquet", ".pq") else "csv")
    if not path.name or path.is_dir():
        raise JobError(f"{path} is a folder; give the name of a file, such as {path / f'out.{table_format}'}")
    if options.spreadsheet_safe and table_format == "parquet":
        raise JobError(
            "--spreadsheet-safe is for CSV, and text in a Parquet file is never a formula;"
            " leave it out, or give --format csv"
        )
    return table_format


def _writer_for(
    table_format: Format, spreadsheet_safe: bool
) -> Callable[[IO[bytes], Sequence[str], Iterable[Sequence[str]]], None]:
    """Return the function that writes a table of this format. pyarrow is optional, and imported only if needed."""
    if table_format == "csv":
        return _write_spreadsheet_safe_csv if spreadsheet_safe else _write_csv
    from jobs.classification.parquet import write_parquet

    return write_parquet


def _write_csv(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    file.write(_csv_line(columns).encode())
    for row in rows:
        file.write(_csv_line(row).encode("utf-8", ENCODING_ERRORS))


def _write_spreadsheet_safe_csv(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Escape every cell that looks like a formula. Probabilities and statuses never do."""
    escaped = ([f"'{cell}" if cell.startswith(FORMULA_PREFIXES) else cell for cell in row] for row in rows)
    _write_csv(file, columns, escaped)


def _csv_line(row: Sequence[str]) -> str:
    """Format a row of CSV, the same in every version of Python."""
    return ",".join(map(_quote, row)) + "\n"


def _quote(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if NEEDS_QUOTES.search(cell) else cell


def _count(rows: Iterable[list[str]], statuses: Counter[str], unreadable: list[str]) -> Iterator[list[str]]:
    """Pass the rows through, counting their statuses, and collecting the first files to look at again."""
    for row in rows:
        statuses[row[1]] += 1
        if not _is_final(row) and len(unreadable) < MAX_UNREADABLE:
            unreadable.append(row[0])
        yield row


def _remove(folder: Path) -> None:
    """Delete a folder of parts, the fingerprint last: until then the folder can be recognised as one."""
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        elif path.name != FINGERPRINT_FILE:
            path.unlink()
    (folder / FINGERPRINT_FILE).unlink(missing_ok=True)
    folder.rmdir()


def _is_final(row: Sequence[str]) -> bool:
    """Whether a rerun need not look again: a file that could not be opened may have other permissions by then."""
    return row[1] == "ok" or not row[4].startswith("unreadable:")


def _current(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint in today's words: on a cluster, 0.1.0 wrote the option, not the device, and had none but CPUs."""
    return {**fingerprint, "device": "cpu"} if fingerprint.get("device") == "auto" else fingerprint


def _hash(path: Path) -> str:
    with errors_at(path), path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
