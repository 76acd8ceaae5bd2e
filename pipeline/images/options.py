"""How images are decoded, and how the command line says it. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.errors import OptionError

Depth: TypeAlias = tuple[float, float]  # the values of black and white, of grey of more than 8 bits

# Images of more pixels are refused, unless the user allows more: some files of a few kB would fill the memory. An image
# takes up to 9 bytes per pixel while it is decoded, with this limit 0.8 GB.
MAX_PIXELS = 89_478_485  # also Pillow's own limit

MAX_BITS = 32  # of --depth
MAX_MAX_PIXELS = 2**31 - 1  # of --max-pixels


@dataclass(frozen=True)
class DecodeOptions:
    """What is the same for all images of a dataset, and for those that its model classifies.

    depth       the values of black and white of deep grey; None: see `pipeline.images.depth.to_eight_bits`
    max_pixels  a larger image is refused: see `pipeline.images.opening`
    """

    depth: Depth | None = None
    max_pixels: int = MAX_PIXELS


DEFAULT = DecodeOptions()


def parse_depth(text: str) -> Depth | None:
    """Convert `auto` to None, `12` (bits) to (0, 4095), and `-20..80` to the two values. Raises OptionError."""
    text = text.strip().lower()
    if text == "auto":
        return None
    if re.fullmatch(r"\d{1,2}", text) and 1 <= int(text) <= MAX_BITS:
        return 0.0, 2.0 ** int(text) - 1
    black, dots, white = text.partition("..")
    try:
        depth = float(black), float(white)
        if dots and depth[0] < depth[1] and math.isfinite(depth[1] - depth[0]):
            return depth
    except ValueError:
        pass
    raise OptionError(f"--depth {text}: expected auto, a number of bits such as 12, or BLACK..WHITE such as 0..4095")


def describe_depth(depth: Depth) -> str:
    """The depth as text that `parse_depth` reads."""
    return "..".join(repr(value).removesuffix(".0") for value in depth)


def parse_pixels(text: str) -> int:
    """Convert `120M` or `120000000` to a number of pixels. Raises OptionError for other text."""
    match = re.fullmatch(r"(\d{1,10})( ?m)?", text.strip().lower())
    pixels = int(match[1]) * (10**6 if match[2] else 1) if match else 0
    if not 1 <= pixels <= MAX_MAX_PIXELS:
        raise OptionError(f"--max-pixels {text}: expected a number of pixels such as 120M, of at most 2147M")
    return pixels
