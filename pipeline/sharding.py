"""The bytes of a shard, as Zarr's sharding codec lays them out: chunk after chunk, then an index of where each lies.

    https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html

zarr itself writes and reads in one thread of its own, through which all of ours would have to pass: that costs 2 to
3 ms a chunk, and a copy more. A test compares what the two write, byte by byte, and what they read.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from google_crc32c import value as crc32c

from pipeline.codecs import Decode, Encoded, decoder, encoder

ABSENT = 2**64 - 1  # the index has this for a chunk that is not there
INDEX_ENTRY_BYTES = 16  # offset and length
CHECKSUM_BYTES = 4


def shard_pieces(images: npt.NDArray[np.uint8], metadata: dict[str, Any]) -> Iterator[Encoded]:
    """The pieces of a shard with these rows (n, H, W, 3), to be written one after the other.

    metadata is the array's zarr.json. The last chunk is filled up with zeros; chunks without any row are absent.
    """
    sharding = metadata["codecs"][0]["configuration"]
    chunk_rows = sharding["chunk_shape"][0]
    chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"][0] // chunk_rows
    encode = encoder(sharding["codecs"])
    index = np.full((chunks, 2), ABSENT, dtype="<u8")  # (chunks, 2): offset, length
    offset = 0
    for chunk, start in enumerate(range(0, len(images), chunk_rows)):
        pixels = images[start : start + chunk_rows]  # (chunk rows or fewer, H, W, 3)
        if len(pixels) < chunk_rows:
            filling = np.zeros((chunk_rows - len(pixels), *pixels.shape[1:]), np.uint8)
            pixels = np.concatenate([pixels, filling])  # (chunk rows, H, W, 3)
        encoded = encode(pixels)
        length = CHECKSUM_BYTES + (len(encoded) if isinstance(encoded, bytes) else encoded.nbytes)
        index[chunk] = offset, length
        offset += length
        yield encoded
        yield _checksum(encoded)
    yield index.tobytes()
    yield _checksum(index.tobytes())


class ReadSeconds(NamedTuple):
    """Where the time of reading went: getting bytes from the file, and making pixels of them, checksum included."""

    read: float
    decode: float


@dataclass(frozen=True)
class ShardReader:
    """Reads the chunks of shards. Safe to use from many threads, and lets go of the interpreter's lock meanwhile.

    chunks       in a shard
    chunk_shape  (rows, H, W, 3)
    decode       what undoes a chunk's compression, or None
    """

    chunks: int
    chunk_shape: tuple[int, ...]
    decode: Decode | None

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> ShardReader:
        """For the shards of the array with this zarr.json. Raises ValueError or KeyError where it is none of ours."""
        sharding = metadata["codecs"][0]["configuration"]
        chunk_shape = tuple(sharding["chunk_shape"])
        chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"][0] // chunk_shape[0]
        return cls(chunks, chunk_shape, decoder(sharding["codecs"]))

    def read(self, file: Path, chunk: int, out: npt.NDArray[np.uint8]) -> ReadSeconds:
        """The first rows of the shard's chunk-th chunk into out (n, H, W, 3), C-contiguous, n at most a chunk's rows.

        Raises OSError, or ValueError where the bytes are not those that were written.
        """
        began = time.perf_counter()
        with io.FileIO(file) as shard:
            offset, length = self._locate(shard, chunk)
            direct = self.decode is None and out.shape == self.chunk_shape
            stored = out if direct else np.empty(length - CHECKSUM_BYTES, np.uint8)
            if stored.nbytes != length - CHECKSUM_BYTES:
                raise ValueError(f"{length} bytes where {stored.nbytes + CHECKSUM_BYTES} belong")
            shard.seek(offset)
            _read_all(shard, stored)
            checksum = shard.read(CHECKSUM_BYTES)
        got = time.perf_counter()
        if checksum != _checksum(stored):
            raise ValueError("the checksum of the chunk does not match")
        if not direct:
            self._decode(stored, out)
        return ReadSeconds(got - began, time.perf_counter() - got)

    def _locate(self, shard: io.FileIO, chunk: int) -> tuple[int, int]:
        """(offset, length) of a chunk, from the index at the shard's end."""
        index_bytes = self.chunks * INDEX_ENTRY_BYTES
        end = shard.seek(0, os.SEEK_END) - index_bytes - CHECKSUM_BYTES  # of the chunks
        if end < 0:
            raise ValueError("the shard is cut off")
        shard.seek(end)
        index = shard.read(index_bytes + CHECKSUM_BYTES)
        if len(index) < index_bytes + CHECKSUM_BYTES or index[index_bytes:] != _checksum(index[:index_bytes]):
            raise ValueError("the checksum of the shard's index does not match")
        offset, length = np.frombuffer(index, "<u8", 2, chunk * INDEX_ENTRY_BYTES).tolist()
        if offset == ABSENT:
            raise ValueError("missing in its shard")
        if length <= CHECKSUM_BYTES or offset + length > end:
            raise ValueError("the shard's index points outside of it")
        return offset, length

    def _decode(self, stored: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        whole = out if out.shape == self.chunk_shape else np.empty(self.chunk_shape, np.uint8)  # (rows, H, W, 3)
        if self.decode is None:
            if stored.nbytes != whole.nbytes:
                raise ValueError(f"{stored.nbytes} bytes where {whole.nbytes} belong")
            whole = stored.reshape(self.chunk_shape)
        else:
            self.decode(stored, whole)
        if whole is not out:
            out[...] = whole[: len(out)]


def _read_all(shard: io.FileIO, out: npt.NDArray[np.uint8]) -> None:
    view = memoryview(out).cast("B")  # type: ignore[arg-type]  # mypy does not know that arrays are buffers
    done = 0
    while done < len(view):  # a signal, or a file system that gives less at a time, may cut a read short
        count = shard.readinto(view[done:])
        if not count:
            raise ValueError("the shard is cut off")
        done += count


def _checksum(data: Encoded) -> bytes:
    return int(crc32c(data)).to_bytes(CHECKSUM_BYTES, "little")
