"""The journal of a build: a record on disk of its finished shards, from which a killed build resumes.

In the dataset's folder, until it is sealed:

    .build/build.json         identity of the build: its options and source files
    .build/files.txt          these files, a line each: to report what has changed when a build cannot resume
    .build/run                id of the current run: only its workers may write
    .build/*.fingerprints     of the files decoded for a shard; written before the shard's entry
    .build/train-00003.json   a finished shard: its `ShardResult`
    .build/copies.json        groups of near-duplicates, once they are known

Each file is written atomically. The task that writes a shard also writes its journal entry, before the next shard: a
kill costs each worker at most one shard.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logpose.common.files import write_atomically
from pipeline.duplicates.fingerprint import FINGERPRINT_BYTES
from pipeline.duplicates.groups import DuplicateGroups
from pipeline.errors import FailureKind

FOLDER = ".build"
NO_FILE = -1  # instead of a file number: the file of this row could not be decoded
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
        names = {"split": "part", "assigned": "wanted"}
        return {names.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, entry: Any) -> ShardResult:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError."""
        return cls(
            split=entry["part"],
            shard=entry["shard"],
            assigned=tuple(entry["wanted"]),
            failures=tuple((file, _RENAMED_KINDS.get(kind, kind), reason) for file, kind, reason in entry["failures"]),
            sums=tuple(entry["sums"]),
            squares=tuple(entry["squares"]),
            digest=entry["digest"],
        )


class Journal:
    """The journal in the folder of a dataset."""

    def __init__(self, dataset: Path) -> None:
        self._folder = dataset / FOLDER

    def begin(self, identity: dict[str, Any], files: Iterable[str]) -> None:
        """Start the journal of a build with this identity, of source files described by a line each."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        write_atomically(self._folder / "files.txt", "\n".join(files), shared=True)
        # build.json last: it makes the journal valid.
        write_atomically(self._folder / "build.json", json.dumps(identity, indent=1), shared=True)

    def identity(self) -> dict[str, Any] | None:
        """The identity of the unfinished build, or None if there is none."""
        found = _read_json(self._folder / "build.json")
        return found if isinstance(found, dict) else None

    def files(self) -> list[str]:
        """The lines that describe the source files of the unfinished build."""
        try:
            return (self._folder / "files.txt").read_text(encoding="utf-8").split("\n")
        except OSError:
            return []

    def claim(self, run_id: str) -> None:
        """Allow only the workers of this run to write from now on."""
        write_atomically(self._folder / "run", run_id, shared=True)

    def is_claimed_by(self, run_id: str) -> bool:
        """Whether this run still may write: no later run has claimed the journal, and the build is not finished."""
        try:
            return (self._folder / "run").read_text(encoding="utf-8") == run_id
        except OSError:
            return False

    def end(self) -> None:
        """Delete the journal: the dataset is sealed."""
        shutil.rmtree(self._folder, ignore_errors=True)

    # Shards -------------------------------------------------------------------------------------------

    def add(self, result: ShardResult, files: Sequence[int], fingerprints: npt.NDArray[np.uint8]) -> None:
        """Record a written shard, and the fingerprints (n, FINGERPRINT_BYTES) of the n files decoded for it."""
        if files:
            numbers = np.array(files, dtype="<i8").tobytes()
            name = f"{blake2b(numbers, digest_size=8).hexdigest()}.fingerprints"
            write_atomically(self._folder / name, numbers + fingerprints.tobytes(), shared=True)
        entry = self._folder / f"{result.split}-{result.shard:05d}.json"
        write_atomically(entry, json.dumps(result.to_json()), shared=True)

    def results(self) -> dict[tuple[str, int], ShardResult]:
        """The finished shards by split and number. Entries that cannot be read count as unfinished."""
        results = {}
        for path in sorted(self._folder.glob("*-*.json")):
            try:
                result = ShardResult.from_json(_read_json(path))
            except (KeyError, TypeError, ValueError):
                continue
            results[result.split, result.shard] = result
        return results

    # Near-duplicates ----------------------------------------------------------------------------------

    def fingerprints(self, files: int) -> npt.NDArray[np.uint8]:
        """The fingerprints of all files, (files, FINGERPRINT_BYTES), as a memory map; zeros for missing ones."""
        path = self._folder / "all"
        with path.open("wb") as combined:
            combined.truncate(files * FINGERPRINT_BYTES)
            for shard in self._folder.glob("*.fingerprints"):
                content = shard.read_bytes()
                count = len(content) // (8 + FINGERPRINT_BYTES)
                for place, number in enumerate(np.frombuffer(content, dtype="<i8", count=count).tolist()):
                    start = 8 * count + place * FINGERPRINT_BYTES
                    combined.seek(number * FINGERPRINT_BYTES)
                    combined.write(content[start : start + FINGERPRINT_BYTES])
        return np.memmap(path, dtype=np.uint8, mode="r", shape=(files, FINGERPRINT_BYTES))

    def save_duplicates(self, groups: DuplicateGroups) -> None:
        """Record the groups, so that they stay the same if a file disappears before the build is finished."""
        members = enumerate(zip(groups.representative.tolist(), groups.transforms, strict=True))
        copies = [(file, first, transforms) for file, (first, transforms) in members if first != file]
        content = json.dumps({"files": len(groups.representative), "copies": copies})
        write_atomically(self._folder / "copies.json", content, shared=True)

    def duplicates(self) -> DuplicateGroups | None:
        """The recorded groups, or None if there are none yet."""
        entry = _read_json(self._folder / "copies.json")
        if entry is None:
            return None
        groups = DuplicateGroups(np.arange(entry["files"], dtype=np.int64), [""] * entry["files"])
        for file, lead, how in entry["copies"]:
            groups.representative[file], groups.transforms[file] = lead, how
        return groups


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
