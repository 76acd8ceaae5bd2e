"""Compression of chunks, and the checksum that always comes last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numcodecs
import numpy as np
import numpy.typing as npt
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipeline.errors import OptionError

# Decoded photographs hardly compress, so the default is none. Drawings, and photographs with a white border, shrink to
# half or three quarters with lz4: see docs/datasets.md.
CODECS: dict[str, tuple[BytesBytesCodec, ...]] = {
    "none": (),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle", typesize=1),),
    "zstd": (ZstdCodec(level=1),),  # level 3 takes 1.5 times as long, for 2 % less
}

Encoded: TypeAlias = bytes | npt.NDArray[np.uint8]
# (stored bytes, out): decompress a chunk into `out` (n, H, W, 3), which it must fill exactly.
Decode: TypeAlias = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], None]


def chunk_codecs(name: str) -> tuple[BytesBytesCodec, ...]:
    """The codecs of a chunk in the order of writing. Raises OptionError for a name that is not in CODECS.

    The CRC32C is that of the compressed bytes: a decompressor given flipped bits often returns wrong pixels without
    an error.
    """
    if name not in CODECS:
        raise OptionError(f"expected one of the codecs {', '.join(CODECS)}, found {name!r}; 'none' is the default")
    return (*CODECS[name], Crc32cCodec())


def encoder(codecs: list[dict[str, Any]]) -> Callable[[npt.NDArray[np.uint8]], Encoded]:
    """The function that compresses a C-contiguous chunk by the codecs in an array's metadata, without the checksum."""
    codec = _compressor(codecs)
    return (lambda chunk: chunk) if codec is None else (lambda chunk: bytes(codec.encode(chunk)))


def decoder(codecs: list[dict[str, Any]]) -> Decode | None:
    """The inverse of `encoder`; None if chunks are not compressed.

    Raises ValueError for codecs that `chunk_codecs` never returns.
    """
    codec = _compressor(codecs)
    return None if codec is None else codec.decode


def _compressor(codecs: list[dict[str, Any]]) -> Any:
    """The numcodecs object of the compressing codec in an array's metadata, or None."""
    first, *between, last = codecs
    if first["name"] != "bytes" or last["name"] != "crc32c" or len(between) > 1:
        raise ValueError(f"codecs {[codec['name'] for codec in codecs]}")
    if not between:
        return None
    name, options = between[0]["name"], between[0]["configuration"]
    if name == "zstd":
        return numcodecs.Zstd(level=options["level"], checksum=options["checksum"])
    if name != "blosc":
        raise ValueError(f"codec {name!r}")
    shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[options["shuffle"]]
    return numcodecs.Blosc(options["cname"], clevel=options["clevel"], shuffle=shuffle, blocksize=options["blocksize"])
