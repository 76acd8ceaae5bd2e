"""The journal of a build: a record on disk of its finished shards, from which a killed build resumes.

In the dataset's folder, until it is sealed:

    .build/build.json         identity of the build: its options and source files
    .build/files.txt          these files, a line each: to report what has changed when a build cannot resume
    .build/run                id of the current run: only its workers may write
    .build/*.fingerprints     of the files decoded for a shard; written before the shard's entry
    .build/train-00003.json   a finished shard: its `ShardResult`
    .build/copies.json        groups of near-duplicates, once they are known

Each file is written atomically, and has a checksum where a build relies on it: what is damaged is made again. The task
that writes a shard also writes its journal entry, before the next shard: a kill costs each worker at most one shard.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logpose.common.files import (
    NotAFileError,
    make_folder,
    read_regular,
    remove_folder,
    sync_folder,
    write_atomically,
)  # fmt: skip
from logpose.common.records import RecordError, parse_record, read_record, write_record
from pipeline.duplicates.fingerprint import FINGERPRINT_BYTES
from pipeline.duplicates.groups import DuplicateGroups
from pipeline.errors import FailureKind
from pipeline.faults import is_there, read_stored

FOLDER = ".build"
NO_FILE = -1  # instead of a file number: the file of this row could not be decoded
_ON_DISK = {"split": "part", "assigned": "wanted"}  # names of an older version
_RENAMED_KINDS = {"not-a-picture": "not-an-image"}  # of version 0.1, whose builds can be resumed


@dataclass(frozen=True)
class Failure:
    """A file that could not be read, and why."""

    path: str
    kind: FailureKind
    reason: str


@dataclass(frozen=True)
class ShardResult:
    """A written shard.

    assigned  the number of the file assigned to each row
    failures  (file, kind, reason) of each file, assigned now or in an earlier round, that could not be decoded
    sums      of the pixels, per channel: exact integers
    squares   sums of the squared pixels, per channel
    digest    hash of the rows
    """

    split: str
    shard: int
    assigned: tuple[int, ...]
    failures: tuple[tuple[int, FailureKind, str], ...]
    sums: tuple[int, ...]
    squares: tuple[int, ...]
    digest: str

    @property
    def files(self) -> tuple[int, ...]:
        """The number of the file stored in each row, or NO_FILE."""
        failed = {file for file, _, _ in self.failures}
        return tuple(NO_FILE if file in failed else file for file in self.assigned)

    def without_unreadable(self) -> ShardResult:
        """The shard as if the files that could not be opened had never been tried: permissions may have changed."""
        again = {file for file, kind, _ in self.failures if kind == "unreadable"}
        if not again:
            return self
        return replace(
            self,
            assigned=tuple(NO_FILE if file in again else file for file in self.assigned),
            failures=tuple(failure for failure in self.failures if failure[0] not in again),
        )

    def to_json(self) -> dict[str, Any]:
        """The entry of the journal."""
        return {_ON_DISK.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, entry: Any) -> ShardResult:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError."""
        names = {name: _ON_DISK.get(name, name) for name in cls.__dataclass_fields__}
        values = {name: entry[on_disk] for name, on_disk in names.items()}
        failures = [(file, _RENAMED_KINDS.get(kind, kind), reason) for file, kind, reason in entry["failures"]]
        values["failures"] = failures
        return parse_record(cls, values)


class Journal:
    """The journal in the folder of a dataset."""

    def __init__(self, dataset: Path) -> None:
        self._folder = dataset / FOLDER

    def begin(self, identity: dict[str, Any], files: Iterable[str]) -> None:
        """Start the journal of a build with this identity, of source files described by a line each."""
        self.delete()
        make_folder(self._folder)
        write_atomically(self._folder / "files.txt", "\n".join(files), shared=True)
        # build.json last: it makes the journal valid.
        write_record(self._folder / "build.json", identity, shared=True)

    def identity(self) -> dict[str, Any] | None:
        """The identity of the unfinished build, empty if it is damaged, or None if there is none.

        Raises AccessError and ReadError: what cannot be read may well be a build.
        """
        path = self._folder / "build.json"
        try:
            return read_stored(partial(read_record, path), path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (RecordError, NotAFileError):
            return {}

    def files(self) -> list[str]:
        """The lines that describe the source files of the unfinished build."""
        try:
            return read_regular(self._folder / "files.txt").decode("utf-8", "replace").split("\n")
        except OSError:
            return []

    def claim(self, run_id: str) -> None:
        """Allow only the workers of this run to write from now on."""
        write_atomically(self._folder / "run", run_id, shared=True)

    def is_claimed_by(self, run_id: str) -> bool:
        """Whether this run still may write: no later run has claimed the journal, and the build is not finished.

        Raises AccessError and ReadError.
        """
        path = self._folder / "run"
        try:
            return read_stored(partial(read_regular, path), path).decode("utf-8", "replace") == run_id
        except OSError:
            return False

    def end(self) -> None:
        """The dataset is sealed: delete the journal."""
        self.delete()

    def delete(self) -> None:
        """Delete the journal, durably. Raises OSError."""
        if is_there(self._folder):
            remove_folder(self._folder)
            sync_folder(self._folder.parent)

    # Shards -------------------------------------------------------------------------------------------

    def add(self, result: ShardResult, files: Sequence[int], fingerprints: npt.NDArray[np.uint8]) -> None:
        """Record a written shard, and the fingerprints (n, FINGERPRINT_BYTES) of the n files decoded for it."""
        if files:
            numbers = np.array(files, dtype="<i8").tobytes()
            content = numbers + fingerprints.tobytes()
            path = self._folder / f"{_hash(numbers).hex()}.fingerprints"
            write_atomically(path, content + _hash(content), shared=True)
        write_record(self._entry(result.split, result.shard), result.to_json(), shared=True)

    def results(self, files: int) -> dict[tuple[str, int], ShardResult]:
        """The finished shards of a build of so many files, by split and number. Damaged entries count as unfinished."""
        results = {}
        for path in sorted(self._folder.glob("*-*.json")):
            try:
                result = ShardResult.from_json(read_record(path))
            except (OSError, KeyError, TypeError, ValueError):
                continue
            numbers = {*result.assigned, *(file for file, _, _ in result.failures)}
            if path == self._entry(result.split, result.shard) and all(0 <= file < files for file in numbers):
                results[result.split, result.shard] = result
        return results

    def _entry(self, split: str, shard: int) -> Path:
        return self._folder / f"{split}-{shard:05d}.json"

    # Near-duplicates ----------------------------------------------------------------------------------

    def fingerprinted(self, files: int) -> npt.NDArray[np.bool_]:
        """Which of the files have an undamaged fingerprint, (files,)."""
        found = np.zeros(files, dtype=np.bool_)  # (files,)
        for numbers, _ in self._read_fingerprints(files):
            found[numbers] = True
        return found

    def fingerprints(self, files: int) -> npt.NDArray[np.uint8]:
        """The fingerprints of all files, (files, FINGERPRINT_BYTES), as a memory map; zeros for missing ones."""
        path = self._folder / "all"
        with path.open("wb") as combined:
            combined.truncate(files * FINGERPRINT_BYTES)
            for numbers, prints in self._read_fingerprints(files):
                for number, fingerprint in zip(numbers.tolist(), prints, strict=True):
                    combined.seek(number * FINGERPRINT_BYTES)
                    combined.write(fingerprint)
        try:
            return np.memmap(path, dtype=np.uint8, mode="r", shape=(files, FINGERPRINT_BYTES))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            size = files * FINGERPRINT_BYTES  # a file system that cannot map files: into memory
            return np.fromfile(path, np.uint8, size).reshape(files, FINGERPRINT_BYTES)  # (files, FINGERPRINT_BYTES)

    def _read_fingerprints(self, files: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]]:
        """The file numbers (n,) and fingerprints (n, FINGERPRINT_BYTES) of each shard; damaged ones are left out.

        An unfinished build of 0.1.0 has no checksum of the fingerprints, only that of the numbers, in the file's name.
        """
        for path in sorted(self._folder.glob("*.fingerprints")):
            content = read_regular(path)
            count, rest = divmod(len(content), 8 + FINGERPRINT_BYTES)
            content, checksum = (content[:-8], content[-8:]) if rest == 8 else (content, None)
            numbers = np.frombuffer(content, dtype="<i8", count=count)  # (n,)
            whole = rest in (0, 8) and checksum in (None, _hash(content))
            named = path.stem == _hash(numbers.tobytes()).hex()
            if whole and named and ((numbers >= 0) & (numbers < files)).all():
                prints = np.frombuffer(content, dtype=np.uint8, offset=8 * count)  # (n * FINGERPRINT_BYTES,)
                yield numbers, prints.reshape(count, FINGERPRINT_BYTES)

    def save_duplicates(self, groups: DuplicateGroups) -> None:
        """Record the groups, so that they stay the same if a file disappears before the build is finished."""
        members = enumerate(zip(groups.representative.tolist(), groups.transforms, strict=True))
        copies = [(file, first, transforms) for file, (first, transforms) in members if first != file]
        record = {"files": len(groups.representative), "copies": copies}
        write_record(self._folder / "copies.json", record, shared=True)

    def duplicates(self, files: int) -> DuplicateGroups | None:
        """The recorded groups of so many files, or None if there are none yet, or they are damaged."""
        try:
            entry = parse_record(_Copies, read_record(self._folder / "copies.json"))
        except (OSError, RecordError):
            return None
        if entry.files != files or not all(0 <= lead < files and 0 <= file < files for file, lead, _ in entry.copies):
            return None
        groups = DuplicateGroups(np.arange(files, dtype=np.int64), [""] * files)
        for file, lead, how in entry.copies:
            groups.representative[file], groups.transforms[file] = lead, how
        return groups


@dataclass(frozen=True)
class _Copies:
    """The content of copies.json: (file, first file of its group, how they differ) of each copy."""

    files: int
    copies: tuple[tuple[int, int, str], ...]


def _hash(content: bytes) -> bytes:
    return blake2b(content, digest_size=8).digest()
