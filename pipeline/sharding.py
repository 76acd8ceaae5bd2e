"""The bytes of a shard, as Zarr's sharding codec lays them out: chunk after chunk, then an index of where each lies.

    https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html

zarr itself writes in one thread of its own, through which all of a build's would have to pass, and gathers the
shard in memory once more. A test compares what the two write, byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from google_crc32c import value as crc32c

from pipeline.codecs import Encoded, encoder

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


def _checksum(data: Encoded) -> bytes:
    return int(crc32c(data)).to_bytes(CHECKSUM_BYTES, "little")
