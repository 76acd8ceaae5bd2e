"""The program, and the options that several commands share."""

from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

Job = Callable[[], int]  # does the work, returns the exit code

app = typer.Typer(
    name="logpose",
    help="""From a folder of images to a CSV of labels, with a network written from scratch.

\b
  logpose build    images flags.zarr        decode and resize once
  logpose train    flags.zarr runs/flags      train a network on it
  logpose classify new runs/flags/model.safetensors out.csv

Every job may be run again: it goes on where it stopped. See 'logpose COMMAND --help'.""",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    suggest_commands=True,
)


class Fit(StrEnum):
    pad = "pad"
    crop = "crop"
    squash = "squash"


class Codec(StrEnum):
    none = "none"
    lz4 = "lz4"
    zstd = "zstd"


class TableFormat(StrEnum):
    csv = "csv"
    parquet = "parquet"


class Views(StrEnum):
    none = "none"
    mirror = "mirror"
    mirror_shift = "mirror_shift"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a finished output.")]
Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads at work on the images; all cores if not given.")
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="tcp://HOST:PORT", help="A Dask cluster to work on, not threads here.")
]
ComputeOn = Annotated[Device, typer.Option(help="Where to compute; auto takes a GPU if one works.")]
Images = Annotated[
    Path | None, typer.Argument(metavar="IMAGES", help="One folder per class, or train/ and val/ of such.")
]
AnyImages = Annotated[
    Path | None, typer.Argument(metavar="IMAGES", help="A folder, however deep, one image, or a DATASET.zarr.")
]
Built = Annotated[Path | None, typer.Argument(metavar="DATASET.zarr", help="From 'logpose build'.")]
ModelName = Annotated[str | None, typer.Option(metavar="NAME", help="Architecture, such as resnet9.")]
BatchSize = Annotated[int | None, typer.Option(min=1, metavar="N", help="Images a step.")]
Seed = Annotated[int | None, typer.Option(min=0, metavar="N", help="Of weights, order and augmentation.")]
RecipeName = Annotated[str | None, typer.Option(metavar="NAME", help="Recipe by name, see 'logpose recipes'.")]
RecipeFile = Annotated[
    Path | None, typer.Option(metavar="FILE.toml", help="Recipe to read, such as RUN_DIR/config.toml.")
]
RecipeValues = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=v", help="One value of the recipe; repeatable.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"logpose {version('logpose-cnn')}")
        raise typer.Exit


@app.callback()
def _logpose(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
