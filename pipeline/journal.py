"""What a build has finished so far, on disk, so that a killed build goes on where it stopped.

In the dataset's folder, until it is sealed:

    .build/build.json         what is being built: from which files, with which options
    .build/train-00003.json   a finished shard: its `ShardResult`

Each file is written under another name, synced and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import FailureKind
from pipeline.store import sync_file

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

    wanted    for each row the file it was asked to show, by its place in the part's order
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

    def begin(self, identity: dict[str, Any]) -> None:
        """Start a journal for the build with this identity, forgetting any other."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        write_atomically(self._folder / "build.json", json.dumps(identity, indent=1))

    def identity(self) -> dict[str, Any] | None:
        """What is being built here, or None if nothing is."""
        found = _read_json(self._folder / "build.json")
        return found if isinstance(found, dict) else None

    def add(self, result: ShardResult) -> None:
        write_atomically(self._file(result.part, result.shard), json.dumps(asdict(result)))

    def results(self) -> dict[tuple[str, int], ShardResult]:
        """The finished shards, by part and number. A damaged entry counts as not finished."""
        found = {}
        for file in sorted(self._folder.glob("*-*.json")):
            entry = _read_json(file)
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

    def end(self) -> None:
        shutil.rmtree(self._folder)

    def _file(self, part: str, shard: int) -> Path:
        return self._folder / f"{part}-{shard:05d}.json"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old one or the new one, never half of it."""
    temporary = path.with_name(f"{path.name}.partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_file(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
