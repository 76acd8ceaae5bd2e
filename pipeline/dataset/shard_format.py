"""Encode and decode shards in Zarr's format: chunk after chunk, then an index of their offsets.

    https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html

zarr-python funnels all reads and writes through one thread of its own, which costs 2 to 3 ms per chunk and one more
copy. Tests check that both write the same bytes and that zarr reads ours.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from struct import unpack_from
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from logpose.common.files import open_regular
from pipeline.dataset.codecs import Encoded, decoder, encoder

ABSENT = 2**64 - 1  # offset and length, in the index, of a chunk that is not stored
INDEX_ENTRY_BYTES = 16  # offset and length
CHECKSUM_BYTES = 4


def encode_shard(images: npt.NDArray[np.uint8], metadata: dict[str, Any]) -> Iterator[Encoded]:
    """Encode the rows (n, H, W, 3) of a shard; yields buffers to be written one after the other.

    `metadata` is the array's zarr.json. The last chunk is padded with zeros; chunks without rows are not stored.
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
            padding = np.zeros((chunk_rows - len(pixels), *pixels.shape[1:]), np.uint8)
            pixels = np.concatenate([pixels, padding])  # (chunk rows, H, W, 3)
        encoded = encode(pixels)
        length = CHECKSUM_BYTES + (len(encoded) if isinstance(encoded, bytes) else encoded.nbytes)
        index[chunk] = offset, length
        offset += length
        yield encoded
        yield _checksum(encoded)
    yield index.tobytes()
    yield _checksum(index.tobytes())


class ReadSeconds(NamedTuple):
    """Seconds spent reading bytes from the file, and decoding them, checksum included."""

    read: float
    decode: float


class ShardReader:
    """Reader of the chunks of an array's shards. Thread-safe; releases the GIL while reading and decoding.

    `metadata` is the array's zarr.json. Raises ValueError or KeyError if logpose did not write it. The index of each
    shard is read once and cached: a sealed dataset does not change, and stale offsets would fail the checksum.
    on_read(file, status) is called after each read, with the status of the file, and may raise.
    """

    def __init__(
        self, metadata: dict[str, Any], on_read: Callable[[str, os.stat_result], None] = lambda file, status: None
    ) -> None:
        self._on_read = on_read
        sharding = metadata["codecs"][0]["configuration"]
        self._chunk_shape = tuple(sharding["chunk_shape"])  # (rows, H, W, 3)
        self._chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"][0] // self._chunk_shape[0]  # per shard
        self._decode = decoder(sharding["codecs"])
        # Compression never adds more than this; a hostile index may say anything.
        self._max_length = math.prod(self._chunk_shape) * 9 // 8 + 2**16
        self._indexes: dict[str, bytes] = {}  # by file

    def read(self, file: str, chunk: int, out: npt.NDArray[np.uint8]) -> ReadSeconds:
        """Read the first n rows of a chunk, by its number in the shard, into out (n, H, W, 3), C-contiguous.

        Raises OSError, or ValueError if the bytes are damaged.
        """
        began = time.perf_counter()
        descriptor = open_regular(file)
        try:
            offset, length = self._locate(file, descriptor, chunk)
            direct = self._decode is None and out.shape == self._chunk_shape
            if length > self._max_length:
                raise ValueError(f"{length} bytes, more than a chunk can have")
            stored = out if direct else np.empty(length - CHECKSUM_BYTES, np.uint8)
            if stored.nbytes != length - CHECKSUM_BYTES:
                raise ValueError(f"{length} bytes instead of {stored.nbytes + CHECKSUM_BYTES}")
            checksum = bytearray(CHECKSUM_BYTES)
            _read_all(descriptor, (stored, checksum), offset, length)
            self._on_read(file, os.fstat(descriptor))
        finally:
            os.close(descriptor)
        fetched = time.perf_counter()
        if checksum != _checksum(stored):
            raise ValueError("the checksum of the chunk does not match")
        if not direct:
            self._unpack(stored, out)
        return ReadSeconds(fetched - began, time.perf_counter() - fetched)

    def _locate(self, file: str, descriptor: int, chunk: int) -> tuple[int, int]:
        """(offset, length) of a chunk, from the index at the end of the shard."""
        index = self._indexes.get(file)
        if index is None:
            index = self._read_index(descriptor)
            self._indexes[file] = index
        offset, length = unpack_from("<QQ", index, chunk * INDEX_ENTRY_BYTES)
        if offset == ABSENT:
            raise ValueError("missing from its shard")
        if length <= CHECKSUM_BYTES:
            raise ValueError("no bytes, according to the index of the shard")
        return offset, length

    def _read_index(self, descriptor: int) -> bytes:
        index = bytearray(self._chunks * INDEX_ENTRY_BYTES + CHECKSUM_BYTES)
        start = os.fstat(descriptor).st_size - len(index)
        if start < 0:
            raise ValueError("the shard is truncated")
        _read_all(descriptor, (index,), start, len(index))
        entries = bytes(index[:-CHECKSUM_BYTES])
        if index[-CHECKSUM_BYTES:] != _checksum(entries):
            raise ValueError("the checksum of the index of the shard does not match")
        return entries

    def _unpack(self, stored: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        whole = out if out.shape == self._chunk_shape else np.empty(self._chunk_shape, np.uint8)  # (rows, H, W, 3)
        if self._decode is not None:
            self._decode(stored, whole)
        elif stored.nbytes == whole.nbytes:
            whole = stored.reshape(self._chunk_shape)
        else:
            raise ValueError(f"{stored.nbytes} bytes instead of {whole.nbytes}")
        if whole is not out:
            out[...] = whole[: len(out)]


def _read_all(
    descriptor: int, buffers: Sequence[npt.NDArray[np.uint8] | bytearray], offset: int, length: int
) -> None:
    """Fill the buffers, `length` bytes in all, from the file at `offset`; usually one call.

    Raises ValueError if the file is too short.
    """
    done = os.preadv(descriptor, buffers, offset)  # type: ignore[arg-type]  # arrays are buffers
    if done == length:
        return
    views = [memoryview(buffer).cast("B") for buffer in buffers]  # type: ignore[arg-type]
    while done < length:  # signals and network file systems may cut a read short
        rest, skip = [], done
        for view in views:
            rest.append(view[min(skip, len(view)) :])
            skip = max(0, skip - len(view))
        count = os.preadv(descriptor, rest, offset + done)
        if not count:
            raise ValueError("the shard is truncated")
        done += count


def _checksum(data: Encoded) -> bytes:
    # This library releases the GIL for more than a few kilobytes; the one that zarr uses does not.
    return int(crc32c(data)).to_bytes(CHECKSUM_BYTES, "little")  # type: ignore[arg-type]  # arrays are buffers
