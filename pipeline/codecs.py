"""How a chunk is stored: what compresses it, and the checksum that always comes last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numcodecs
import numpy as np
import numpy.typing as npt
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipeline.errors import OptionError

# Decoded photographs hardly compress, and decompressing would only cost time, so that is the default. Drawings,
# and photographs with white around them, are half to three quarters the size with lz4; docs/datasets.md has figures.
CODECS: dict[str, tuple[BytesBytesCodec, ...]] = {
    "none": (),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle", typesize=1),),
    "zstd": (ZstdCodec(level=1),),  # level 3 takes half as long again for 2 % less
}

Encoded: TypeAlias = bytes | npt.NDArray[np.uint8]


def chunk_codecs(name: str) -> tuple[BytesBytesCodec, ...]:
    """The codecs of a chunk, from pixels to disk.

    CRC32C goes around the compressed bytes: a decompressor fed flipped bits often answers with wrong
    pixels and no error. Raises OptionError for a name that is not in CODECS.
    """
    if name not in CODECS:
        raise OptionError(f"expected a codec out of {', '.join(CODECS)}, found {name!r}")
    return (*CODECS[name], Crc32cCodec())


def encoder(described: list[dict[str, Any]]) -> Callable[[npt.NDArray[np.uint8]], Encoded]:
    """What compresses a C-contiguous chunk as the codecs in an array's metadata say, up to the checksum."""
    compressors = [codec for codec in described if codec["name"] not in ("bytes", "crc32c")]
    if not compressors:
        return lambda chunk: chunk
    (compressor,) = compressors
    options = compressor["configuration"]
    if compressor["name"] == "zstd":
        zstd = numcodecs.Zstd(level=options["level"], checksum=options["checksum"])
        return lambda chunk: bytes(zstd.encode(chunk))
    shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[options["shuffle"]]
    blosc = numcodecs.Blosc(
        options["cname"], clevel=options["clevel"], shuffle=shuffle, blocksize=options["blocksize"]
    )
    return lambda chunk: bytes(blosc.encode(chunk))
