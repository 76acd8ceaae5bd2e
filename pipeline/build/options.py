"""The options of a build. The command line and the Python interface are both made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from logpose.common.options import MAX_WORKERS, Option
from pipeline.errors import OptionError
from pipeline.images.options import MAX_PIXELS, parse_depth, parse_pixels

MAX_SIDE = 99_999  # pixels


def parse_size(text: str) -> tuple[int, int]:
    """Convert `128` or `160x120` (width x height) to (height, width). Raises OptionError for other text."""
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text.strip().lower())
    if not match:
        raise OptionError(f"--size {text}: expected a number or WIDTHxHEIGHT, such as 128 or 160x120")
    width, height = match[1], match[2] or match[1]
    return int(height), int(width)


def parse_failure_limit(text: str) -> int | float:
    """Convert `5` to a count of files (int), `5%` to a fraction of them (float). Raises OptionError for other text."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?) ?%", text.strip())
    if not match:
        raise OptionError(f"--max-failures {text}: expected a count such as 5, or a percentage such as 5%")
    return int(match[1]) if match[1] else float(match[2]) / 100


@dataclass(frozen=True)
class BuildOptions:
    """How to build a dataset.

    size          (height, width) of the stored images, in pixels
    fit           'pad', 'crop' or 'squash': see `pipeline.images.decode.decode_image`
    depth         (black, white): the values of deep grey that become 0 and 255; None: by a sample of the images
    max_pixels    images of more pixels are refused
    val           fraction of each class for validation; unused where the folders are named train and val
    seed          of the split and of the order of rows
    group_copies  find near-duplicates, keep each group of them in one split, and list them
    codec         a name from `pipeline.dataset.codecs.CODECS`
    max_failures  unreadable files to accept: a count (int) or a fraction of all (float); None: any number
    workers       decoding threads on this machine; None: one per CPU. A cluster has its own workers
    scheduler     address of a Dask scheduler whose workers see the same file system; None: this machine
    overwrite     replace a finished dataset, or an unfinished one of other images or options
    """

    size: Annotated[
        tuple[int, int],
        Option("Pixels of the stored images.", "N|WIDTHxHEIGHT", group="Images", parse=parse_size, default="128"),
    ] = (128, 128)
    fit: Annotated[
        Literal["pad", "crop", "squash"],
        Option("Reach that shape with a border, by cropping or by distorting.", group="Images"),
    ] = "pad"
    depth: Annotated[
        tuple[float, float] | None,
        Option(
            "Of values of more than 8 bits: those from black to white.", "BITS|BLACK..WHITE", group="Images",
            parse=parse_depth, default="auto",
        ),
    ] = None
    max_pixels: Annotated[
        int,
        Option("Refuse images of more pixels.", "N|NM", group="Images", parse=parse_pixels, default=f"{MAX_PIXELS}"),
    ] = MAX_PIXELS
    codec: Annotated[
        Literal["none", "lz4", "zstd"],
        Option("Compression of the pixels; photographs hardly compress.", group="Images"),
    ] = "none"
    max_failures: Annotated[
        int | float | None,
        Option("Stop if more files than this cannot be read.", "N|N%", group="Images", parse=parse_failure_limit),
    ] = None
    val: Annotated[
        float, Option("Fraction for validation, unless there is a val/ folder.", "X", 0, 1, group="Split")
    ] = 0.1
    seed: Annotated[int, Option("Seed of the split and of the row order.", "N", 0, group="Split")] = 0
    group_copies: Annotated[
        bool, Option("Find near-duplicates and never divide them between train and val.", group="Split")
    ] = True
    workers: Annotated[int | None, Option("Decoding threads; default: one per CPU.", "N", 1, MAX_WORKERS)] = None
    scheduler: Annotated[str | None, Option("Use this Dask cluster instead of local threads.", "tcp://HOST:PORT")] = (
        None
    )
    overwrite: Annotated[bool, Option("Replace a finished dataset.")] = False
