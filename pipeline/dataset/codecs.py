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
# Decompresses a chunk into an array (n, H, W, 3), which it must fill exactly.
Decode: TypeAlias = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], None]


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
    codec = _compressor(described)
    return (lambda chunk: chunk) if codec is None else (lambda chunk: bytes(codec.encode(chunk)))


def decoder(described: list[dict[str, Any]]) -> Decode | None:
    """What undoes the compression of a chunk, its checksum taken off; None where there is none.

    Raises ValueError for codecs that `chunk_codecs` never gives.
    """
    codec = _compressor(described)
    if codec is None:
        return None

    def decode(stored: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        codec.decode(stored, out)

    return decode


def _compressor(described: list[dict[str, Any]]) -> Any:
    """The compressing codec of an array's metadata as numcodecs has it, or None."""
    first, *between, last = described
    if first["name"] != "bytes" or last["name"] != "crc32c" or len(between) > 1:
        raise ValueError(f"codecs {[codec['name'] for codec in described]}")
    if not between:
        return None
    name, options = between[0]["name"], between[0]["configuration"]
    if name == "zstd":
        return numcodecs.Zstd(level=options["level"], checksum=options["checksum"])
    if name != "blosc":
        raise ValueError(f"codec {name!r}")
    shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[options["shuffle"]]
    return numcodecs.Blosc(options["cname"], clevel=options["clevel"], shuffle=shuffle, blocksize=options["blocksize"])
