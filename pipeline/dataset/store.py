"""Create / write a shard / seal / open / read rows: the one door to zarr.

Writing: `create` makes the arrays, then each task calls `write_shard` for whole shards of its own, then
`seal` closes. Two writers in one shard would corrupt it silently, whole shards cannot. Reading: `Dataset`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore

from logpose.common.errors import printable
from logpose.common.files import sync, write_atomically
from pipeline.dataset.codecs import chunk_codecs
from pipeline.dataset.schema import COLUMN_CHUNK_ROWS, IMAGE_DIMENSIONS, SPLITS, Attributes, Layout, layout
from pipeline.dataset.shard_format import ReadSeconds, ShardReader, shard_pieces
from pipeline.errors import Damage, DamageError, DatasetError

# Without it zarr leaves out a chunk that is all zeros, and a black image would look like a missing one.
_WRITE_ALL: Any = {"write_empty_chunks": True}


# Writing ----------------------------------------------------------------------------------------------


def create(path: Path, attributes: Attributes, rows: dict[str, int], codec: str = "none") -> None:
    """Make an unsealed dataset, where there is none yet, with room for so many rows a part."""
    # Not with zarr's overwrite, which empties the folder: the lock of our build lies in it.
    root = zarr.create_group(LocalStore(path), zarr_format=3, attributes=attributes.to_json())
    height, width = attributes.size
    for part in SPLITS:
        cut = layout(rows[part], attributes.size)
        root.create_group(part).create_array(
            "images",
            shape=(rows[part], height, width, 3),
            dtype=np.uint8,
            chunks=(cut.chunk_rows, height, width, 3),
            shards=(cut.shard_rows, height, width, 3),
            compressors=chunk_codecs(codec),
            fill_value=0,
            dimension_names=IMAGE_DIMENSIONS,
        )


def make_room(path: Path, part: str, rows: int) -> None:
    """Let the images of a part have at least so many rows."""
    images = _open_array(path, part, "images", "r+")
    if images.shape[0] < rows:
        images.resize((rows, *images.shape[1:]))


def shard_file(path: Path, part: str, shard: int) -> Path:
    return Path(_shard_name(path, part, shard))


def _shard_name(path: Path, part: str, shard: int) -> str:
    # Not a Path: making one takes longer than opening the file, and the stream asks for every chunk.
    return f"{path}/{part}/images/c/{shard}/0/0/0"


def write_shard(
    path: Path, part: str, shard: int, images: npt.NDArray[np.uint8], still_wanted: Callable[[], None] = lambda: None
) -> None:
    """Write the rows (n, H, W, 3) of one whole shard: all of it or, if that fails, nothing.

    On return the bytes are on the disk. still_wanted() is asked right before they get the file's name, and may
    raise. Raises OSError, as when the disk is full.
    """
    place = shard_file(path, part, shard)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, shard_pieces(images, _metadata(path, part)), shared=True, before_rename=still_wanted)


def seal(
    path: Path, attributes: Attributes, labels: dict[str, npt.NDArray[np.int64]], paths: dict[str, list[str]]
) -> None:
    """Trim the arrays to their rows, add the columns, and, once all is on the disk, mark it whole."""
    for part in SPLITS:
        images = _open_array(path, part, "images", "r+")
        images.resize((len(labels[part]), *images.shape[1:]))
        _write_column(path, part, "labels", labels[part])
        _write_column(path, part, "paths", np.array(paths[part], dtype=np.dtypes.StringDType()))
    for leftover in path.rglob("*.partial"):  # of a writer that was killed
        leftover.unlink()
    for folder, _, files in os.walk(path):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    _update(path, attributes.to_json())


def unseal(path: Path) -> None:
    """Say that the dataset is no longer whole: before taking it apart."""
    _update(path, {"sealed": False})


def _update(path: Path, attributes: dict[str, Any]) -> None:
    zarr.open_group(LocalStore(path), mode="r+").update_attributes(attributes)
    sync(path / "zarr.json")
    sync(path)


def _write_column(path: Path, part: str, name: str, values: npt.NDArray[Any]) -> None:
    array = zarr.create_array(
        LocalStore(path),
        name=f"{part}/{name}",
        shape=values.shape,
        dtype=str if name == "paths" else values.dtype,
        chunks=(min(COLUMN_CHUNK_ROWS, max(1, len(values))),),
        compressors=chunk_codecs("none"),
        dimension_names=("row",),
        config=_WRITE_ALL,
        overwrite=True,
    )
    array[:] = values


# Reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """The rows of train or of val. Safe to read from many threads."""

    path: Path  # of the dataset
    name: str
    rows: int
    size: tuple[int, int]  # (H, W)
    layout: Layout
    class_count: int

    @property
    def chunk_rows(self) -> int:
        return self.layout.chunk_rows

    @property
    def shards(self) -> int:
        return self.layout.shards(self.rows)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows start..stop-1 as uint8 (stop - start, H, W, 3): see `read_into`."""
        images = np.empty((max(stop - start, 0), *self.size, 3), dtype=np.uint8)  # (n, H, W, 3)
        self.read_into(images, start, stop)
        return images

    def read_into(self, out: npt.NDArray[np.uint8], start: int, stop: int) -> ReadSeconds:
        """Rows start..stop-1 into out, uint8 (stop - start, H, W, 3), C-contiguous; returns where the time went.

        Whole chunks are read, so reads along chunks waste nothing. Raises DamageError where a chunk is damaged or
        missing.
        """
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"expected rows within 0..{self.rows} of {self.name}, found {start}..{stop}")
        if start % self.chunk_rows == 0 and start < stop == min(start + self.chunk_rows, self.rows):
            return self._read_chunk(start, stop, out)  # as the stream asks
        read = decode = 0.0
        for first in range(start // self.chunk_rows * self.chunk_rows, stop, self.chunk_rows):
            last = min(first + self.chunk_rows, self.rows)
            begin, end = max(first, start), min(last, stop)  # the rows of this chunk that are wanted
            if begin == first:
                seconds = self._read_chunk(first, last, out[begin - start : end - start])
            else:
                head = np.empty((end - first, *self.size, 3), np.uint8)  # (n, H, W, 3), from the chunk's first row on
                seconds = self._read_chunk(first, last, head)
                out[begin - start : end - start] = head[begin - first :]
            read, decode = read + seconds.read, decode + seconds.decode
        return ReadSeconds(read, decode)

    def _read_chunk(self, first: int, last: int, out: npt.NDArray[np.uint8]) -> ReadSeconds:
        """The first rows of the chunk of rows first..last-1 into out (n, H, W, 3)."""
        shard, row = divmod(first, self.layout.shard_rows)
        try:
            return self._reader.read(_shard_name(self.path, self.name, shard), row // self.chunk_rows, out)
        except Exception as error:
            raise self._damage("images", first, last, error) from error

    def read_column(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start..stop-1 of 'labels' or 'paths'. Raises DamageError."""
        first = start // COLUMN_CHUNK_ROWS
        try:
            values = np.asarray(_open_array(self.path, self.name, name, "r")[start:stop])  # (n,)
            for chunk in range(first, -(-stop // COLUMN_CHUNK_ROWS)):
                self._column_file(name, chunk).stat()
        except Exception as error:
            if stop > (first + 1) * COLUMN_CHUNK_ROWS:  # which of the chunks was it?
                for chunk in range(first, -(-stop // COLUMN_CHUNK_ROWS)):
                    self.read_column(name, chunk * COLUMN_CHUNK_ROWS, min((chunk + 1) * COLUMN_CHUNK_ROWS, self.rows))
            last = min((first + 1) * COLUMN_CHUNK_ROWS, self.rows)
            raise self._damage(name, first * COLUMN_CHUNK_ROWS, last, error) from error
        return values

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
        """Where each row came from: N paths relative to the source folder, as `printable` writes them."""
        return [str(path) for path in self.read_column("paths", 0, self.rows)]

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(_metadata(self.path, self.name))

    def _column_file(self, name: str, chunk: int) -> Path:
        return self.path / self.name / name / "c" / str(chunk)

    def _damage(self, array: str, start: int, stop: int, error: Exception) -> DamageError:
        """What is wrong with the chunk of rows start..stop-1."""
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).split(". ")[0]
        made_from: tuple[str, ...] = ()
        if array != "paths":
            with suppress(DamageError):
                made_from = tuple(map(str, self.read_column("paths", start, stop)))
        rows = self.chunk_rows if array == "images" else COLUMN_CHUNK_ROWS
        chunk = start // rows
        file = self._column_file(array, chunk)
        if array == "images":
            file = shard_file(self.path, self.name, start // self.layout.shard_rows)
        damage = Damage(self.name, array, chunk, (start, stop), file, printable(reason), made_from)
        return DamageError(damage, self.path)


@dataclass(frozen=True)
class Dataset:
    """A sealed dataset: open it, and read its parts."""

    path: Path
    class_names: tuple[str, ...]
    size: tuple[int, int]  # (H, W)
    fit: str
    seed: int
    mean: tuple[float, float, float]  # of the training part, a channel, in 0..255
    std: tuple[float, float, float]
    content_hash: str
    train: Split
    val: Split
    attributes: Attributes

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Open a sealed dataset. Raises DatasetError, naming what is wrong with it and the remedy."""
        path = Path(path)
        said = read_attributes(path)
        if not said.sealed:
            raise DatasetError(
                f"expected a finished dataset, found one still being built at {path}: run the same"
                " 'logpose build' again, it goes on where it stopped"
            )
        if said.mean is None or said.std is None or said.content_hash is None:
            raise DatasetError(
                f"expected mean, std and content hash, found none in {path}: the metadata is damaged,"
                " build the dataset again with --overwrite"
            )
        train, val = (open_split(path, part, said) for part in SPLITS)
        for part in (train, val):
            _check_columns(part)
        return cls(
            path, said.class_names, said.size, said.fit, said.seed, said.mean, said.std, said.content_hash,
            train, val, said,
        )  # fmt: skip


def read_attributes(path: Path) -> Attributes:
    """What a dataset, sealed or not, says of itself. Raises DatasetError if there is none."""
    metadata = path / "zarr.json"
    if not metadata.is_file():
        found = "nothing" if not os.path.lexists(path) else "no zarr.json in it"
        raise DatasetError(f"expected a dataset built by logpose, found {found} at {path}: check the path")
    try:
        node = json.loads(metadata.read_bytes())
        attributes = node.get("attributes")
    except (OSError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"expected JSON metadata, found {error} in {metadata}: it is damaged, build the dataset again"
        ) from error
    return Attributes.from_json(attributes, str(path))


def open_split(path: Path, part: str, attributes: Attributes) -> Split:
    """Open a part, sealed or not, and check that its images have the form that the attributes promise."""
    try:
        images = _open_array(path, part, "images", "r")
        shape, expected = images.shape[1:], (*attributes.size, 3)
        if shape != expected or images.dtype != np.uint8:
            raise ValueError(f"images of {images.dtype} {shape} instead of uint8 {expected}")
        cut = Layout(images.chunks[0], _shard_rows(images))
        if cut.shard_rows % cut.chunk_rows or images.chunks[1:] != expected:
            raise ValueError(f"chunks of {images.chunks} in shards of {images.shards}")
        ShardReader(_metadata(path, part))
    except Exception as error:
        raise DatasetError(
            f"expected whole metadata, found {error} in {path / part}: it is damaged, build the dataset again"
            " with --overwrite"
        ) from error
    rows = int(images.shape[0])
    return Split(path, part, rows, attributes.size, cut, len(attributes.class_names))


def _check_columns(part: Split) -> None:
    for name in ("labels", "paths"):
        try:
            shape = _open_array(part.path, part.name, name, "r").shape
            if shape != (part.rows,):
                raise ValueError(f"{shape[0]} {name} for {part.rows} images")
        except Exception as error:
            raise DatasetError(
                f"expected whole metadata, found {error} in {part.path / part.name}: it is damaged, build the"
                " dataset again with --overwrite"
            ) from error


def _metadata(path: Path, part: str) -> dict[str, Any]:
    """What zarr.json says of the images of a part."""
    found: dict[str, Any] = json.loads((path / part / "images" / "zarr.json").read_bytes())
    return found


def _open_array(path: Path, part: str, name: str, mode: Any) -> zarr.Array[Any]:
    store = LocalStore(path, read_only=mode == "r")
    array = zarr.open_array(store, path=f"{part}/{name}", mode=mode, zarr_format=3)
    return array.with_config(_WRITE_ALL)  # open_array takes a config, and forgets it


def _shard_rows(array: zarr.Array[Any]) -> int:
    if array.shards is None:
        raise DatasetError("expected images in shards, found none")
    return int(array.shards[0])
