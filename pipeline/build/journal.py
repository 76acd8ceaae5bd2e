"""What a build has finished so far, on disk, so that a killed build goes on where it stopped.

In the dataset's folder, until it is sealed:

    .build/build.json         what is being built: with which options, from which files
    .build/files.txt          these files, a line each: to say what has changed since
    .build/run                which process is at it: the only one whose workers may write
    .build/*.fingerprints     of the files decoded for a shard; on the disk before the shard counts as finished
    .build/train-00003.json   a finished shard: its `ShardResult`
    .build/copies.json        which files are copies of one another, once that is known

Each file is written under another name, synced and renamed: it is there whole or not at all. Whoever
writes a shard writes its journal too, before going on to the next: a kill costs a worker its one shard.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
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
HOLE = -1


@dataclass(frozen=True)
class Failure:
    """A file that is not in the dataset, and why."""

    path: str
    kind: FailureKind
    reason: str


@dataclass(frozen=True)
class ShardResult:
    """One shard as it was written.

    wanted    for each row the number of the file it was asked to show
    failures  (file, kind, reason) of each of these that could not be decoded: its row is a hole
    sums      of the pixels, a channel; squares of their squares: exact integers
    digest    of the rows
    """

    part: str
    shard: int
    wanted: tuple[int, ...]
    failures: tuple[tuple[int, FailureKind, str], ...]
    sums: tuple[int, int, int]
    squares: tuple[int, int, int]
    digest: str

    @property
    def files(self) -> tuple[int, ...]:
        """For each row the file it shows, or HOLE."""
        failed = {file for file, _, _ in self.failures}
        return tuple(HOLE if file in failed else file for file in self.wanted)


class Journal:
    """The journal of the build in a dataset's folder."""

    def __init__(self, dataset: Path) -> None:
        self._folder = dataset / FOLDER

    def begin(self, identity: dict[str, Any], files: Iterable[str]) -> None:
        """Start a journal for the build with this identity, of files described by a line each."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        write_atomically(self._folder / "files.txt", "\n".join(files), shared=True)
        content = json.dumps(identity, indent=1)
        write_atomically(self._folder / "build.json", content, shared=True)  # last: now there is a journal

    def identity(self) -> dict[str, Any] | None:
        """What is being built here, or None if nothing is."""
        found = _read_json(self._folder / "build.json")
        return found if isinstance(found, dict) else None

    def files(self) -> list[str]:
        """The line of each file that the build was begun with."""
        try:
            return (self._folder / "files.txt").read_text(encoding="utf-8").split("\n")
        except OSError:
            return []

    def take_over(self, run: str) -> None:
        """From now on only the workers of this run may write."""
        write_atomically(self._folder / "run", run, shared=True)

    def is_run_by(self, run: str) -> bool:
        """Whether no later run has taken over, and none has finished."""
        try:
            return (self._folder / "run").read_text(encoding="utf-8") == run
        except OSError:
            return False

    # Shards -------------------------------------------------------------------------------------------

    def add(self, result: ShardResult, files: Sequence[int], fingerprints: npt.NDArray[np.uint8]) -> None:
        """Note a shard that is on the disk, and the fingerprints (n, FINGERPRINT_BYTES) of n files decoded for it."""
        if files:
            numbers = np.array(files, dtype="<i8").tobytes()
            name = f"{blake2b(numbers, digest_size=8).hexdigest()}.fingerprints"
            write_atomically(self._folder / name, numbers + fingerprints.tobytes(), shared=True)
        write_atomically(self._file(result.part, result.shard), json.dumps(asdict(result)), shared=True)

    def results(self) -> dict[tuple[str, int], ShardResult]:
        """The finished shards by part and number. What cannot be read is as good as not finished."""
        found = {}
        for path in sorted(self._folder.glob("*-*.json")):
            entry = _read_json(path)
            try:
                result = ShardResult(
                    part=entry["part"],
                    shard=entry["shard"],
                    wanted=tuple(entry["wanted"]),
                    failures=tuple((file, kind, reason) for file, kind, reason in entry["failures"]),
                    sums=tuple(entry["sums"]),
                    squares=tuple(entry["squares"]),
                    digest=entry["digest"],
                )
            except (KeyError, TypeError, ValueError):
                continue
            found[result.part, result.shard] = result
        return found

    # Copies -------------------------------------------------------------------------------------------

    def fingerprints(self, files: int) -> npt.NDArray[np.uint8]:
        """Those of all files, (files, FINGERPRINT_BYTES), zeros where there is none; a map of a file on the disk."""
        path = self._folder / "all"
        with path.open("wb") as together:
            together.truncate(files * FINGERPRINT_BYTES)
            for found in self._folder.glob("*.fingerprints"):
                content = found.read_bytes()
                count = len(content) // (8 + FINGERPRINT_BYTES)
                for place, number in enumerate(np.frombuffer(content, dtype="<i8", count=count).tolist()):
                    start = 8 * count + place * FINGERPRINT_BYTES
                    together.seek(number * FINGERPRINT_BYTES)
                    together.write(content[start : start + FINGERPRINT_BYTES])
        return np.memmap(path, dtype=np.uint8, mode="r", shape=(files, FINGERPRINT_BYTES))

    def save_duplicates(self, copies: DuplicateGroups) -> None:
        """Note which files are copies. What follows must not change when one of them vanishes."""
        members = np.flatnonzero(copies.representative != np.arange(len(copies.representative))).tolist()
        found = [(file, int(copies.representative[file]), copies.transforms[file]) for file in members]
        content = json.dumps({"files": len(copies.representative), "copies": found})
        write_atomically(self._folder / "copies.json", content, shared=True)

    def copies(self) -> DuplicateGroups | None:
        """What was noted, or None if nothing was yet."""
        entry = _read_json(self._folder / "copies.json")
        if entry is None:
            return None
        copies = DuplicateGroups(np.arange(entry["files"], dtype=np.int64), [""] * entry["files"])
        for file, lead, how in entry["copies"]:
            copies.representative[file], copies.transforms[file] = lead, how
        return copies

    # The end ------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Forget all of it: the dataset is sealed."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, part: str, shard: int) -> Path:
        return self._folder / f"{part}-{shard:05d}.json"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
