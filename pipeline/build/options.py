"""The options of a build. The command line and the Python interface are both made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from logpose.common.options import Option
from pipeline.errors import OptionError


def parse_size(text: str) -> tuple[int, int]:
    """`128` or `160x120` (width x height) as (height, width). Raises OptionError."""
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text.strip().lower())
    if not match:
        raise OptionError(f"--size {text}: expected a number or WIDTHxHEIGHT, such as 128 or 160x120")
    width, height = match[1], match[2] or match[1]
    return int(height), int(width)


def parse_failure_limit(text: str) -> int | float:
    """`5` is a count of files, `5%` a fraction of them. Raises OptionError."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?) ?%", text.strip())
    if not match:
        raise OptionError(f"--max-failures {text}: expected a count such as 5, or a percentage such as 5%")
    return int(match[1]) if match[1] else float(match[2]) / 100


@dataclass(frozen=True)
class BuildOptions:
    """How to build a dataset.

    size          (height, width) of the stored images, in pixels
    fit           'pad', 'crop' or 'squash': see `pipeline.images.decode.decode_image`
    val           fraction of each class for validation; unused where the folders say train and val
    seed          of the split and of the order of rows
    group_copies  find near-duplicates, keep each group in one split, and list them
    codec         a name from `pipeline.dataset.codecs.CODECS`
    workers       threads that decode on this machine; None: one per CPU. A scheduler has its own workers
    scheduler     address of a Dask scheduler whose workers see the same file system; None: this machine
    max_failures  unreadable files to accept: a count (int) or a fraction of all (float); None: any number
    overwrite     replace a finished dataset, or an unfinished one of other images or options
    """

    size: Annotated[
        tuple[int, int],
        Option("Pixels of every image in the dataset.", "N|WIDTHxHEIGHT", parse=parse_size, default="128"),
    ] = (128, 128)
    fit: Annotated[Literal["pad", "crop", "squash"], Option("Add a border, cut off, or distort to get there.")] = "pad"
    val: Annotated[float, Option("Fraction for validation, if there is no val/ folder.", "X", 0, 1)] = 0.1
    seed: Annotated[int, Option("Seed of the split and of the order of rows.", "N", 0)] = 0
    group_copies: Annotated[
        bool, Option("Find near-duplicates, and keep each group of them on one side of the split.")
    ] = True
    codec: Annotated[
        Literal["none", "lz4", "zstd"], Option("Compression of the pixels; photographs hardly compress.")
    ] = "none"
    workers: Annotated[int | None, Option("Threads that decode images; default: one per CPU.", "N", 1)] = None
    scheduler: Annotated[
        str | None, Option("Work on this Dask cluster instead of on threads here.", "tcp://HOST:PORT")
    ] = None
    max_failures: Annotated[
        int | float | None,
        Option("Stop if more files than this cannot be read.", "N|N%", parse=parse_failure_limit),
    ] = None
    overwrite: Annotated[bool, Option("Replace a finished dataset.")] = False
