"""The depth of a dataset: which values of more than 8 bits become black and white, from a sample of its images."""

from __future__ import annotations

from pipeline.errors import DecodeError
from pipeline.images.decode import read_value_range
from pipeline.images.depth import ValueRange, choose_depth
from pipeline.images.options import Depth
from pipeline.scan.source_files import Source

# Evenly spread over the files. Opening one takes a tenth of a millisecond; deep grey is decoded as a whole.
MAX_OPENED = 128
MAX_DECODED_PIXELS = 2**26  # after the first


def find_depth(source: Source, max_pixels: int) -> Depth | None:
    """The depth for the images of a folder; None if no image of the sample has more than 8 bits."""
    files = source.files
    count = min(len(files), MAX_OPENED)
    ranges: list[ValueRange] = []
    pixels = 0
    for index in range(count):
        path = source.root / files[index * len(files) // count].path
        try:
            found = read_value_range(path, max_pixels)
        except DecodeError:  # the build itself says so
            continue
        if found is not None:
            ranges.append(found)
            pixels += found.pixels
            if pixels > MAX_DECODED_PIXELS:
                break
    return choose_depth(ranges)
