"""How a chunk is stored: what compresses it, and the checksum that always comes last."""

from __future__ import annotations

from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipeline.errors import OptionError

# Decoded photographs hardly compress (measured: lz4 0 %, zstd 8 %), and decompressing would only cost time.
# Drawings and screenshots may be worth the zstd.
CODECS: dict[str, tuple[BytesBytesCodec, ...]] = {
    "none": (),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle", typesize=1),),
    "zstd": (ZstdCodec(level=3),),
}


def chunk_codecs(name: str) -> tuple[BytesBytesCodec, ...]:
    """The codecs of a chunk, from pixels to disk.

    CRC32C goes around the compressed bytes: a decompressor fed flipped bits often answers with wrong
    pixels and no error. Raises OptionError for a name that is not in CODECS.
    """
    if name not in CODECS:
        raise OptionError(f"expected a codec out of {', '.join(CODECS)}, found {name!r}")
    return (*CODECS[name], Crc32cCodec())
