"""Open and read a dataset.

    data = Dataset.open("flags.zarr")
    data.train[0]           # Example(image (H, W, 3), label, path)
    data["val"][10:20]      # Examples(images (10, H, W, 3), labels (10,), 10 paths)
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore

from logpose.common.errors import printable, reason_of
from logpose.common.records import read_json
from pipeline.dataset.examples import Example, Examples, RowIndices, row_numbers
from pipeline.dataset.generation import Generation, Stamps, changed, check_generation, read_generation
from pipeline.dataset.limits import check_column, check_column_file, check_layout
from pipeline.dataset.schema import COLUMN_CHUNK_ROWS, SPLITS, Attributes, Layout, content_digest, shard_digest
from pipeline.dataset.shard_format import ReadSeconds, ShardReader
from pipeline.errors import Damage, DamageError, DatasetError, PipelineError, damaged_metadata, short_of_resources
from pipeline.faults import read_stored, status_of

# Otherwise zarr skips a chunk that is all zeros, and a black image would look like a missing one.
WRITE_EMPTY_CHUNKS: Any = {"write_empty_chunks": True}

MAX_NAMES_IN_REPR = 10

_checking = threading.Lock()  # a thread at a time reads a whole dataset to check it


@dataclass(frozen=True)
class Split:
    """The rows of train or of val. Thread-safe."""

    path: Path  # of the dataset
    name: str
    rows: int
    size: tuple[int, int]  # (H, W)
    layout: Layout
    class_count: int
    generation: Generation | None = None  # of the dataset when it was opened; None: not sealed
    stamps: Stamps | None = field(default=None, compare=False)  # of its files, then

    def check_unchanged(self) -> None:
        """Check that what was read so far is of the dataset that was opened. Raises DatasetChangedError."""
        if self.generation is not None:
            check_generation(self.path, self.generation)

    def _check_file(self, file: str, status: os.stat_result) -> None:
        """Check that a file that was read is as it was, or else what the dataset holds. Raises DatasetChangedError."""
        if self.stamps is None or self.generation is None or self.stamps.fits(file, status):
            return
        with _checking:
            self.check_unchanged()
            if not self.stamps.fits(file, status) and _content_hash(self.path) != self.generation.content_hash:
                raise changed(self.path, f"other rows in {os.path.relpath(file, self.path)}")
            self.stamps.accept(file, status)

    def _files(self) -> Iterator[str]:
        """The files that hold the rows."""
        yield from (_shard_name(self.path, self.name, shard) for shard in range(self.shards))
        for chunk in range(-(-self.rows // COLUMN_CHUNK_ROWS)):
            yield from (str(self._column_file(name, chunk)) for name in ("labels", "paths"))

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk."""
        return self.layout.chunk_rows

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.chunk_rows)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return self.layout.shards(self.rows)

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        height, width = self.size
        return f"<Split {self.name!r} of {str(self.path)!r}: images uint8 ({self.rows}, {height}, {width}, 3)>"

    @overload
    def __getitem__(self, index: RowIndices) -> Examples: ...  # type: ignore[overload-overlap]
    @overload
    def __getitem__(self, index: SupportsIndex) -> Example: ...
    def __getitem__(self, index: SupportsIndex | RowIndices) -> Example | Examples:
        """The row at an int, or the rows of a slice, a list or an array of ints, or a boolean mask (rows,).

        Negative numbers count from the end. The first call reads all labels and paths, and caches them. Raises
        IndexError for rows out of range, TypeError for other indices, and DamageError for damaged chunks.
        """
        rows = row_numbers(index, self.rows, self.name, self.path)  # (n,) or an int
        if isinstance(rows, int):
            return Example(self.read(rows, rows + 1)[0], int(self.labels[rows]), self.paths[rows])
        return Examples(self.read_rows(rows), self.labels[rows], [self.paths[row] for row in rows.tolist()])

    def read_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Read rows (n,), in any order, as uint8 (n, H, W, 3); each chunk is read once.

        The rows must be within 0..self.rows - 1. Raises DamageError.
        """
        if len(rows) and (np.diff(rows) == 1).all():
            return self.read(int(rows[0]), int(rows[-1]) + 1)
        images = np.empty((len(rows), *self.size, 3), np.uint8)  # (n, H, W, 3)
        chunks = rows // self.chunk_rows  # (n,)
        order = np.argsort(chunks, kind="stable")  # (n,)
        ends = np.flatnonzero(np.diff(chunks[order])) + 1  # (chunks - 1,)
        for places in np.split(order, ends) if len(rows) else ():
            start, stop = int(rows[places].min()), int(rows[places].max()) + 1
            images[places] = self.read(start, stop)[rows[places] - start]
        return images

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read rows start..stop-1 as uint8 (stop - start, H, W, 3): see `read_into`."""
        images = np.empty((max(stop - start, 0), *self.size, 3), dtype=np.uint8)  # (n, H, W, 3)
        self.read_into(images, start, stop)
        return images

    def read_into(self, out: npt.NDArray[np.uint8], start: int, stop: int) -> ReadSeconds:
        """Read rows start..stop-1 into out, uint8 (stop - start, H, W, 3), C-contiguous; returns the time spent.

        Whole chunks are read: aligned reads waste nothing. Raises IndexError for rows out of range, and DamageError
        if a chunk is damaged or missing.
        """
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"expected rows within 0..{self.rows} of {self.name}, found {start}..{stop}")
        if start % self.chunk_rows == 0 and start < stop == min(start + self.chunk_rows, self.rows):
            return self._read_chunk(start, stop, out)  # one whole chunk, as a stream reads
        read = decode = 0.0
        for first in range(start // self.chunk_rows * self.chunk_rows, stop, self.chunk_rows):
            last = min(first + self.chunk_rows, self.rows)
            begin, end = max(first, start), min(last, stop)  # the requested rows of this chunk
            if begin == first:
                seconds = self._read_chunk(first, last, out[begin - start : end - start])
            else:
                head = np.empty((end - first, *self.size, 3), np.uint8)  # (n, H, W, 3), from the chunk's first row on
                seconds = self._read_chunk(first, last, head)
                out[begin - start : end - start] = head[begin - first :]
            read, decode = read + seconds.read, decode + seconds.decode
        return ReadSeconds(read, decode)

    def _read_chunk(self, first: int, last: int, out: npt.NDArray[np.uint8]) -> ReadSeconds:
        """Read the first rows of the chunk of rows first..last-1 into out (n, H, W, 3)."""
        shard, row = divmod(first, self.layout.shard_rows)
        file = _shard_name(self.path, self.name, shard)
        try:
            return read_stored(lambda: self._reader.read(file, row // self.chunk_rows, out), file)
        except Exception as error:
            raise self._damage("images", first, last, error) from error

    def read_column(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Read rows start..stop-1 of 'labels' or 'paths', (stop - start,). Raises DamageError."""
        chunks = range(start // COLUMN_CHUNK_ROWS, -(-stop // COLUMN_CHUNK_ROWS))
        where, bad = self.path / self.name / name, chunks.start
        try:
            array = read_stored(lambda: open_array(self.path, self.name, name, "r"), where)
            for bad in chunks:
                file = self._column_file(name, bad)
                read_stored(partial(check_column_file, file, name, array.chunks[0]), file)
            bad = chunks.start
            values = np.asarray(read_stored(lambda: array[start:stop], where))  # (n,)
            for chunk in chunks:
                file = self._column_file(name, chunk)
                self._check_file(str(file), read_stored(file.stat, file))
        except Exception as error:
            if len(chunks) > 1 and not short_of_resources(error, where):  # find out which chunk it is
                for chunk in range(bad, chunks.stop):
                    self.read_column(name, *self._column_rows(chunk))
            first, last = self._column_rows(bad) if len(chunks) else (start, stop)
            raise self._damage(name, first, last, error) from error
        return values

    def _column_rows(self, chunk: int) -> tuple[int, int]:
        return chunk * COLUMN_CHUNK_ROWS, min((chunk + 1) * COLUMN_CHUNK_ROWS, self.rows)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each row, (N,): an index into the dataset's class_names."""
        labels = self.read_column("labels", 0, self.rows).astype(np.int64, copy=False)  # (N,)
        if self.rows and (labels.min() < 0 or labels.max() >= self.class_count):
            raise DatasetError(
                f"expected labels below {self.class_count}, found {labels.min()}..{labels.max()} in"
                f" {self.name} of {self.path}: build the dataset again with --overwrite"
            )
        return labels

    @cached_property
    def paths(self) -> list[str]:
        """The source file of each row: N paths relative to the folder of images, as `escaped` writes them."""
        return [str(path) for path in self.read_column("paths", 0, self.rows)]

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(image_metadata(self.path, self.name), self._check_file)

    def _column_file(self, name: str, chunk: int) -> Path:
        return self.path / self.name / name / "c" / str(chunk)

    def _damage(self, array: str, start: int, stop: int, error: Exception) -> Exception:
        """The error for the damaged chunk of rows start..stop-1. Raises DatasetChangedError if it is another's."""
        if isinstance(error, PipelineError | MemoryError):  # it could not be read: that is no damage
            return error
        if fault := short_of_resources(error, self.path / self.name):
            return fault
        self.check_unchanged()
        reason = "no such file" if isinstance(error, FileNotFoundError) else reason_of(error).split(". ")[0]
        sources: tuple[str, ...] = ()
        if array != "paths":
            with suppress(DamageError):
                sources = tuple(map(str, self.read_column("paths", start, stop)))
        if array == "images":
            chunk, file = start // self.chunk_rows, shard_file(self.path, self.name, start // self.layout.shard_rows)
        else:
            chunk = start // COLUMN_CHUNK_ROWS
            file = self._column_file(array, chunk)
        damage = Damage(self.name, array, chunk, (start, stop), file, printable(reason), sources)
        return DamageError(damage, self.path)


@dataclass(frozen=True)
class Dataset:
    """A sealed dataset. `len()` is the number of all images; `data["train"]` is `data.train`.

    >>> data = logpose.open("colours.zarr")
    >>> len(data), data["val"].class_count, data.size, data.fit
    (60, 3, (16, 16), 'pad')
    """

    path: Path
    class_names: tuple[str, ...]
    size: tuple[int, int]  # (H, W)
    fit: str
    seed: int
    mean: tuple[float, float, float]  # per channel, of the training split, in 0..255
    std: tuple[float, float, float]
    content_hash: str
    train: Split
    val: Split
    attributes: Attributes

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open a sealed dataset. Raises DatasetError."""
        path = Path(path)
        generation = read_generation(path)
        found = read_attributes(path)
        if not found.sealed:
            raise DatasetError(
                f"expected a finished dataset, found an unfinished build at {path}: run the same 'logpose build'"
                " again, it resumes where it stopped"
            )
        if found.mean is None or found.std is None or found.content_hash is None:
            raise damaged_metadata("mean, std and content hash", "none", path)
        train, val = (replace(open_split(path, split, found), generation=generation) for split in SPLITS)
        train, val = (replace(split, stamps=Stamps(split._files())) for split in (train, val))
        if len(found.class_names) > train.rows:  # a build refuses a class without images to train on
            raise damaged_metadata("images of each class", f"{len(found.class_names):,} classes", path)
        for split in (train, val):
            _check_columns(split)
            split.check_unchanged()
        return cls(
            path, found.class_names, found.size, found.fit, found.seed, found.mean, found.std, found.content_hash,
            train, val, found,
        )  # fmt: skip

    def check_unchanged(self) -> None:
        """See `Split.check_unchanged`."""
        self.train.check_unchanged()

    def __len__(self) -> int:
        return len(self.train) + len(self.val)

    def __getitem__(self, name: str) -> Split:
        """The split 'train' or 'val'. Raises KeyError for other names."""
        if name not in SPLITS:
            raise KeyError(
                f"expected the split 'train' or 'val', found {name!r} for {self.path}: rows have an index in their"
                " split, as in data['train'][0]"
            )
        return self.train if name == "train" else self.val

    __iter__ = None  # otherwise `for` would call __getitem__ with 0, 1, …

    def __repr__(self) -> str:
        height, width = self.size
        names, more = self.class_names[:MAX_NAMES_IN_REPR], len(self.class_names) - MAX_NAMES_IN_REPR
        mean, std = (", ".join(f"{value:.1f}" for value in values) for values in (self.mean, self.std))
        return (
            f"<Dataset {str(self.path)!r}\n"
            f"  train    {self.train.rows:,} images\n"
            f"  val      {self.val.rows:,} images\n"
            f"  images   uint8 ({height}, {width}, 3), fit {self.fit!r}\n"
            f"  classes  {len(self.class_names):,}: {', '.join(names)}{f' and {more:,} more' if more > 0 else ''}\n"
            f"  mean     {mean} (red, green, blue of train, in 0..255)\n"
            f"  std      {std}\n"
            f"  content  {self.content_hash}>"
        )


def _content_hash(path: Path) -> str | None:
    """The content hash of what the dataset at the path holds now, by reading all of it; None if it is damaged."""
    digests: dict[str, list[str]] = {}
    try:
        now = Dataset.open(path)
        for split in (replace(each, stamps=None) for each in (now.train, now.val)):
            step = split.layout.shard_rows
            rows = [slice(start, min(start + step, split.rows)) for start in range(0, split.rows, step)]
            parts = ((split.read(each.start, each.stop), split.labels[each], split.paths[each]) for each in rows)
            digests[split.name] = [shard_digest([images], labels, paths) for images, labels, paths in parts]
    except DatasetError:
        return None
    return content_digest(now.attributes, digests)


def read_attributes(path: Path) -> Attributes:
    """Read the attributes of a dataset, sealed or not. Raises DatasetError if there is none."""
    metadata = path / "zarr.json"
    status = status_of(metadata)
    if status is None or not stat.S_ISREG(status.st_mode):
        found = "nothing" if not os.path.lexists(path) else "no zarr.json" if path.is_dir() else "a file"
        raise DatasetError(
            f"expected a dataset built by logpose, found {found} at {path}: check the path, or run logpose build"
        )
    try:
        node = read_stored(partial(read_json, metadata), metadata)
        if (node.get("zarr_format"), node.get("node_type")) != (3, "group"):
            raise ValueError("no Zarr v3 group")
        attributes = node.get("attributes")
    except (OSError, ValueError, AttributeError) as error:
        raise damaged_metadata("JSON", error, metadata) from error
    return Attributes.from_json(attributes, str(path))


def open_split(path: Path, split: str, attributes: Attributes) -> Split:
    """Open a split of a dataset, sealed or not. Raises DatasetError if its images do not match the attributes."""
    try:
        images = read_stored(partial(open_array, path, split, "images", "r"), path / split / "images")
        shape, expected = images.shape[1:], (*attributes.size, 3)
        if shape != expected or images.dtype != np.uint8:
            raise ValueError(f"images of {images.dtype} {shape} instead of uint8 {expected}")
        if images.shards is None:
            raise ValueError("images without shards")
        layout = Layout(images.chunks[0], images.shards[0])
        if images.chunks[1:] != expected or images.shards[1:] != expected:
            raise ValueError(f"chunks of {images.chunks} in shards of {images.shards}")
        check_layout(images.shape[0], layout, expected)
        ShardReader(image_metadata(path, split))
    except Exception as error:
        raise damaged_metadata("complete metadata", error, path / split) from error
    return Split(path, split, int(images.shape[0]), attributes.size, layout, len(attributes.class_names))


def _check_columns(split: Split) -> None:
    for name in ("labels", "paths"):
        try:
            folder = split.path / split.name / name
            array = read_stored(partial(open_array, split.path, split.name, name, "r"), folder)
            read_stored(partial(check_column, folder, name, array, split.rows), folder)
        except Exception as error:
            raise damaged_metadata("complete metadata", error, split.path / split.name) from error


def image_metadata(path: Path, split: str) -> dict[str, Any]:
    """The zarr.json of a split's images."""
    file = path / split / "images" / "zarr.json"
    return dict(read_stored(partial(read_json, file), file))


def open_array(path: Path, split: str, name: str, mode: Any) -> zarr.Array[Any]:
    """Open 'images', 'labels' or 'paths' of a split in zarr's mode 'r' or 'r+'."""
    read_json(path / split / name / "zarr.json")  # zarr would wait for a pipe
    array = zarr.open_array(LocalStore(path, read_only=mode == "r"), path=f"{split}/{name}", mode=mode, zarr_format=3)
    return array.with_config(WRITE_EMPTY_CHUNKS)  # zarr.open_array ignores its own config argument


def shard_file(path: Path, split: str, shard: int) -> Path:
    """The file of a shard of images."""
    return Path(_shard_name(path, split, shard))


def _shard_name(path: Path, split: str, shard: int) -> str:
    # A str: making a Path takes longer than opening the file, and a stream does it for every chunk.
    return f"{path}/{split}/images/c/{shard}/0/0/0"
