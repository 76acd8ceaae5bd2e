"""Inputs of a classification: a folder, or the rows of a dataset, in resumable parts.

A part is written, and skipped by a rerun, as a whole. It consists of tasks, which run on threads or workers.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cnn.checkpoint import ModelCard
from jobs.classification.task import FailureTask, FileTask, RowTask, Task, hash_names
from jobs.errors import JobError
from logpose.common.errors import unescaped
from logpose.common.files import can_be_read
from pipeline.build.reports import read_failures
from pipeline.dataset.store import Dataset, Split
from pipeline.faults import is_there
from pipeline.images.options import Depth, describe_depth
from pipeline.scan.file_index import FileIndex

FILES_PER_PART = 512  # a killed run loses at most this much work
ROWS_PER_PART = 4096  # more, since a dataset's parts have to be merged into the order of the file names


class Part(NamedTuple):
    """A resumable part. `digest` changes with its files."""

    digest: str
    rows: int
    tasks: list[Task]


class FolderInputs:
    """All files below `root`, or the one file `root`, except the table `out` and its parts.

    task_rows  files of a task
    merge      whether the table must be merged from sorted parts, because the parts are not in its order
    """

    merge = False

    def __init__(self, root: Path, out: Path, task_rows: int) -> None:
        self.root, self.task_rows = root, task_rows
        # Absolute, since a worker elsewhere has another working directory.
        self.folder = str((root if root.is_dir() else root.parent).absolute())
        self._is_own = _own_names(root, out)
        self.index: FileIndex | None = None

    def open(self, scratch: Path) -> AbstractContextManager[object]:
        """Start listing the files; temporary files go to `scratch`."""
        self.index = FileIndex(self.root, scratch, FILES_PER_PART, self._is_own)
        return self.index

    def parts(self) -> Iterator[Part]:
        """Yield the parts, always in the same order."""
        assert self.index is not None, "not open"
        for files in self.index.parts():
            names = [file.name for file in files]
            tasks: list[Task] = [
                FileTask(
                    self.folder, names[start : start + self.task_rows],
                    frozenset(n for n, file in enumerate(files[start : start + self.task_rows]) if file.size < 0),
                )
                for start in range(0, len(names), self.task_rows)
            ]  # fmt: skip
            identity = [f"{file.name}\0{file.size}\0{file.mtime_ns}" for file in files]
            yield Part(hash_names(identity), len(files), tasks)

    def check_unchanged(self) -> None:
        """Check that what was read so far is of these inputs. Raises DatasetChangedError; a listed file may change."""

    def can_be_read(self, name: str) -> bool:
        """Whether a file that could not be opened can be by now."""
        return can_be_read(f"{self.folder}/{name}")

    @property
    def found(self) -> int:
        """Rows found so far."""
        return self.index.found if self.index else 0


class DatasetInputs:
    """All rows of a dataset, and the files that it left out, with the interface of `FolderInputs`.

    task_rows  rows of a task, rounded down to whole chunks
    Raises JobError where the images have another shape than the model's, DatasetError where there is no dataset.
    """

    merge = True

    def __init__(self, dataset: Path, card: ModelCard, task_rows: int) -> None:
        self.data = Dataset.open(dataset)
        self.dataset = dataset.absolute()
        self.task_rows = task_rows
        size = card.in_shape[:2]
        if (self.data.size, self.data.fit, self.data.attributes.depth) != (size, card.fit, card.depth):
            (height, width), (h, w), found = self.data.size, size, self.data.attributes
            raise JobError(
                f"expected images of {w}×{h} ({card.fit}{_depth_note(card.depth)}), as the model was trained on, found"
                f" {width}×{height} ({found.fit}{_depth_note(found.depth)}) in {dataset}; classify its source instead,"
                f" {found.source}"
            )
        self.failures = sorted(
            (unescaped(each.path), f"{each.kind}: {each.reason}") for each in read_failures(dataset)
        )

    def open(self, scratch: Path) -> AbstractContextManager[object]:
        return nullcontext()

    def parts(self) -> Iterator[Part]:
        yield from chain.from_iterable(map(self._split_parts, (self.data.train, self.data.val)))
        if self.failures:
            names, reasons = (list(column) for column in zip(*self.failures, strict=True))
            yield Part(hash_names([*names, *reasons]), len(names), [FailureTask(names, reasons)])

    def _split_parts(self, split: Split) -> Iterator[Part]:
        part_rows = -(-ROWS_PER_PART // split.layout.shard_rows) * split.layout.shard_rows
        task_rows = max(1, self.task_rows // split.chunk_rows) * split.chunk_rows
        generation = split.generation
        assert generation, "not sealed"
        for start in range(0, split.rows, part_rows):
            paths = split.read_column("paths", start, min(start + part_rows, split.rows))  # (n,)
            names = [unescaped(str(path)) for path in paths]
            tasks: list[Task] = [
                RowTask(self.dataset, generation, split.name, start + first, names[first : first + task_rows])
                for first in range(0, len(names), task_rows)
            ]
            yield Part(hash_names([self.data.content_hash, split.name, str(start)]), len(names), tasks)

    def check_unchanged(self) -> None:
        self.data.check_unchanged()

    def can_be_read(self, name: str) -> bool:
        return False  # building the dataset again looks at its files

    @property
    def found(self) -> int:
        return self.data.train.rows + self.data.val.rows + len(self.failures)


Inputs: TypeAlias = FolderInputs | DatasetInputs


def find_inputs(images: Path, out: Path, card: ModelCard, task_rows: int) -> Inputs:
    """Return the images at `images`, in tasks of about `task_rows`, for a model with this card."""
    if is_there(images / "zarr.json") and (images / "zarr.json").is_file():
        return DatasetInputs(images, card, task_rows)
    return FolderInputs(images, out, task_rows)


def _own_names(root: Path, out: Path) -> Callable[[str], bool]:
    """Return whether a name below `root` is the table or the folder of its parts, whatever path leads there."""
    table = os.path.realpath(out)
    own = {table, f"{table}.parts"}
    names = {os.path.basename(path) for path in own}  # noqa: PTH119 - text, for speed
    folder = root if root.is_dir() else root.parent

    def is_own(name: str) -> bool:
        return name.rpartition("/")[2] in names and os.path.realpath(folder / name) in own

    return is_own


def _depth_note(depth: Depth | None) -> str:
    return f", depth {describe_depth(depth)}" if depth else ""
