"""The bytes of a shard, as Zarr's sharding codec lays them out: chunk after chunk, then an index of where each lies.

    https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html

zarr itself writes and reads in one thread of its own, through which all of ours would have to pass: that costs 2 to
3 ms a chunk, and a copy more. A test compares what the two write, byte by byte, and what they read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from struct import unpack_from
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from pipeline.dataset.codecs import Encoded, decoder, encoder

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


class ShardReader:
    """Reads the chunks of an array's shards. Safe to use from many threads, and lets go of the interpreter's lock.

    metadata is the array's zarr.json. Raises ValueError or KeyError where it is none of ours. Where the chunks of a
    shard lie is looked up once: a sealed dataset stays as it is, and a chunk from another place has another checksum.
    """

    def __init__(self, metadata: dict[str, Any]) -> None:
        sharding = metadata["codecs"][0]["configuration"]
        self._chunk_shape = tuple(sharding["chunk_shape"])  # (rows, H, W, 3)
        self._chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"][0] // self._chunk_shape[0]  # in a shard
        self._decode = decoder(sharding["codecs"])
        self._indexes: dict[str, bytes] = {}  # by file

    def read(self, file: str, chunk: int, out: npt.NDArray[np.uint8]) -> ReadSeconds:
        """The first rows of the shard's chunk-th chunk into out (n, H, W, 3), C-contiguous, n at most a chunk's rows.

        Raises OSError, or ValueError where the bytes are not those that were written.
        """
        began = time.perf_counter()
        descriptor = os.open(file, _READ_ONLY)
        try:
            offset, length = self._locate(file, descriptor, chunk)
            direct = self._decode is None and out.shape == self._chunk_shape
            stored = out if direct else np.empty(length - CHECKSUM_BYTES, np.uint8)
            if stored.nbytes != length - CHECKSUM_BYTES:
                raise ValueError(f"{length} bytes where {stored.nbytes + CHECKSUM_BYTES} belong")
            checksum = bytearray(CHECKSUM_BYTES)
            _read_all(descriptor, (stored, checksum), offset, length)
        finally:
            os.close(descriptor)
        got = time.perf_counter()
        if checksum != _checksum(stored):
            raise ValueError("the checksum of the chunk does not match")
        if not direct:
            self._unpack(stored, out)
        return ReadSeconds(got - began, time.perf_counter() - got)

    def _locate(self, file: str, descriptor: int, chunk: int) -> tuple[int, int]:
        """(offset, length) of a chunk, from the index at the shard's end."""
        index = self._indexes.get(file)
        if index is None:
            index = self._read_index(descriptor)
            self._indexes[file] = index
        offset, length = unpack_from("<QQ", index, chunk * INDEX_ENTRY_BYTES)
        if offset == ABSENT:
            raise ValueError("missing in its shard")
        if length <= CHECKSUM_BYTES:
            raise ValueError("the shard's index gives it no bytes")
        return offset, length

    def _read_index(self, descriptor: int) -> bytes:
        index = bytearray(self._chunks * INDEX_ENTRY_BYTES + CHECKSUM_BYTES)
        start = os.fstat(descriptor).st_size - len(index)
        if start < 0:
            raise ValueError("the shard is cut off")
        _read_all(descriptor, (index,), start, len(index))
        entries = bytes(index[:-CHECKSUM_BYTES])
        if index[-CHECKSUM_BYTES:] != _checksum(entries):
            raise ValueError("the checksum of the shard's index does not match")
        return entries

    def _unpack(self, stored: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        whole = out if out.shape == self._chunk_shape else np.empty(self._chunk_shape, np.uint8)  # (rows, H, W, 3)
        if self._decode is not None:
            self._decode(stored, whole)
        elif stored.nbytes == whole.nbytes:
            whole = stored.reshape(self._chunk_shape)
        else:
            raise ValueError(f"{stored.nbytes} bytes where {whole.nbytes} belong")
        if whole is not out:
            out[...] = whole[: len(out)]


_READ_ONLY = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


def _read_all(
    descriptor: int, buffers: Sequence[npt.NDArray[np.uint8] | bytearray], offset: int, length: int
) -> None:
    """Fill the buffers, of that length together, from `offset` on: in one call, as a rule.

    Raises ValueError where the file ends before.
    """
    done = os.preadv(descriptor, buffers, offset)  # type: ignore[arg-type]  # arrays are buffers
    if done == length:
        return
    views = [memoryview(buffer).cast("B") for buffer in buffers]  # type: ignore[arg-type]
    while done < length:  # a signal, or a file system that gives less at a time, may cut a read short
        rest, skip = [], done
        for view in views:
            rest.append(view[min(skip, len(view)) :])
            skip = max(0, skip - len(view))
        count = os.preadv(descriptor, rest, offset + done)
        if not count:
            raise ValueError("the shard is cut off")
        done += count


def _checksum(data: Encoded) -> bytes:
    # Of more than some kilobytes this library lets go of the interpreter's lock; zarr's own does not.
    return int(crc32c(data)).to_bytes(CHECKSUM_BYTES, "little")  # type: ignore[arg-type]  # arrays are buffers
