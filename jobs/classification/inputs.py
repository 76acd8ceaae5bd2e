"""What there is to classify, part by part: the files of a folder, or the rows of a dataset.

A part is what is finished at a time, and its blocks are what is done at a time.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

from cnn.checkpoint import ModelCard
from jobs.classification.task import Block, FailuresBlock, FilesBlock, RowsBlock, hash_names
from jobs.errors import JobError
from pipeline.build.reports import read_failures
from pipeline.dataset.store import Dataset, Split
from pipeline.scan.file_index import FileIndex

FILES_PER_PART = 512  # at most this much work of a worker is lost when a run is killed
ROWS_PER_PART = 4096  # more, since the rows of a dataset have to be merged into the order of their names


class Work(NamedTuple):
    """A part of what there is to classify; `digest` is another one if anything about it has changed."""

    digest: str
    rows: int
    blocks: list[Block]


class Source(Protocol):
    """Where the images come from.

    merge  whether the parts are in another order than the table's: each is sorted then
    """

    merge: bool

    def opened(self, scratch: Path) -> AbstractContextManager[object]:
        """Begins to look, with `scratch` for temporary files."""

    def parts(self) -> Iterator[Work]:
        """The parts, in an order that is always the same."""

    @property
    def found(self) -> int:
        """Rows known of so far."""


class Folder:
    """All files below `root`, or the one file given, but for the table that is written there: `out` and beside it."""

    merge = False

    def __init__(self, root: Path, out: Path, block: int) -> None:
        self.root, self.block = root, block
        self.own = _relative_names(root, out)
        self.roll: FileIndex | None = None

    def opened(self, scratch: Path) -> AbstractContextManager[object]:
        self.roll = FileIndex(self.root, scratch, FILES_PER_PART, self.own.__contains__)
        return self.roll

    def parts(self) -> Iterator[Work]:
        assert self.roll is not None, "not opened"
        # A worker elsewhere has another working folder.
        folder = str((self.root if self.root.is_dir() else self.root.parent).absolute())
        for files in self.roll.parts():
            names = [file.name for file in files]
            blocks: list[Block] = [
                FilesBlock(folder, names[start : start + self.block]) for start in range(0, len(names), self.block)
            ]
            about = (f"{file.name}\0{file.size}\0{file.mtime_ns}" for file in files)
            yield Work(hash_names(list(about)), len(files), blocks)

    @property
    def found(self) -> int:
        return self.roll.found if self.roll else 0


class Rows:
    """All rows of a dataset, and the files that it left out.

    Raises JobError where its images have another form than those that the model knows.
    """

    merge = True

    def __init__(self, dataset: Path, card: ModelCard, block: int) -> None:
        self.data = Dataset.open(dataset)
        self.dataset = dataset.absolute()
        self.block = block
        size = card.in_shape[:2]
        if (self.data.size, self.data.fit) != (size, card.fit):
            (height, width), (h, w) = self.data.size, size
            raise JobError(
                f"expected images of {w}×{h} ({card.fit}), as the model was trained on, found {width}×{height}"
                f" ({self.data.fit}) in {dataset}; classify what it was built from, {self.data.attributes.source}"
            )
        self.failures = read_failures(dataset)

    def opened(self, scratch: Path) -> AbstractContextManager[object]:
        return nullcontext()

    def parts(self) -> Iterator[Work]:
        yield from chain.from_iterable(map(self._of_part, (self.data.train, self.data.val)))
        if self.failures:
            names = [failure.path for failure in self.failures]
            reasons = [f"{failure.kind}: {failure.reason}" for failure in self.failures]
            yield Work(hash_names([*names, *reasons]), len(names), [FailuresBlock(names, reasons)])

    def _of_part(self, part: Split) -> Iterator[Work]:
        step = -(-ROWS_PER_PART // part.layout.shard_rows) * part.layout.shard_rows
        block = max(1, self.block // part.chunk_rows) * part.chunk_rows  # whole chunks
        for start in range(0, part.rows, step):
            names = [str(name) for name in part.read_column("paths", start, min(start + step, part.rows))]
            blocks: list[Block] = [
                RowsBlock(self.dataset, part.name, start + first, names[first : first + block])
                for first in range(0, len(names), block)
            ]
            about = hash_names([self.data.content_hash, part.name, str(start)])
            yield Work(about, len(names), blocks)

    @property
    def found(self) -> int:
        return self.data.train.rows + self.data.val.rows + len(self.failures)


def find_inputs(images: Path, out: Path, card: ModelCard, block: int) -> Folder | Rows:
    """The images at `images`, in blocks of about `block`, for a model with this card."""
    return Rows(images, card, block) if (images / "zarr.json").is_file() else Folder(images, out, block)


def _relative_names(root: Path, out: Path) -> set[str]:
    """What the table and its parts are called below `root`."""
    paths = (out.absolute(), out.absolute().with_name(out.name + ".parts"))
    if not root.is_dir():
        return {path.name for path in paths if path == root.absolute()}
    return {path.relative_to(root.absolute()).as_posix() for path in paths if path.is_relative_to(root.absolute())}
