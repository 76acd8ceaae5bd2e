"""Options of every job except `build` (see `pipeline.build.options`), for the command line and the Python interface.

Imports nothing heavy: `--help` must not wait for NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_type_hints

from jobs.console.sizes import parse_bytes
from logpose.common.options import MAX_WORKERS, Option
from pipeline.images.options import MAX_PIXELS, parse_pixels

Device: TypeAlias = Annotated[Literal["auto", "cpu", "cuda"], Option("Where to compute; auto uses a GPU if one works.")]
Precision: TypeAlias = Annotated[
    Literal["auto", "float32", "tf32", "bf16"],
    Option("Of a GPU's products and feature maps; auto is bf16 if the card has it."),
]
Threads: TypeAlias = Annotated[
    int | None, Option("Computing threads on a CPU, for the same result; default: one per CPU.", "N", 1, MAX_WORKERS)
]
Workers: TypeAlias = Annotated[int | None, Option("Decoding threads; default: one per CPU.", "N", 1, MAX_WORKERS)]
ModelClass: TypeAlias = Annotated[
    str | None,
    Option("Class of the network, unless it is one of logpose's.", "PACKAGE.MODULE:CLASS", flag="--model"),
]


_Recipe = partial(Option, group="Recipe")
_Start = partial(Option, group="Start")
_Table = partial(Option, group="Table")


@dataclass(frozen=True)
class RecipeOptions:
    """Where a recipe comes from: see `jobs.recipes.config.resolve`."""

    recipe: Annotated[
        str | None, _Recipe("Recipe by name, with its own defaults: see 'logpose recipes'.", "NAME")
    ] = None
    config: Annotated[Path | None, _Recipe("Recipe file, such as RUN_DIR/config.toml.", "FILE.toml")] = None
    set: Annotated[tuple[str, ...], _Recipe("One value of the recipe; repeatable.", "a.b=v")] = ()
    model: Annotated[
        str | None, _Recipe("Architecture, or PACKAGE.MODULE:CLASS; default: resnet9.", "NAME", recipe="model.name")
    ] = None
    batch_size: Annotated[
        int | None, _Recipe("Images per step; default: 64.", "N", 1, recipe="train.batch_size")
    ] = None
    seed: Annotated[
        int | None, _Recipe("Seed of weights, order and augmentation.", "N", 0, recipe="train.seed")
    ] = None

    def recipe_values(self) -> dict[str, Any]:
        """Return the options that set a value of the recipe, as `section.key` -> value, without those not given."""
        hints = get_type_hints(type(self), include_extras=True)
        values = {get_args(hints[field.name])[1].recipe: getattr(self, field.name) for field in fields(self)}
        return {key: value for key, value in values.items() if key and value is not None}


@dataclass(frozen=True)
class TrainOptions(RecipeOptions):
    """How to train. The recipe's own values are in `cnn.training.recipe`."""

    epochs: Annotated[int | None, _Recipe("Passes over the images; default: 20.", "N", 1, recipe="train.epochs")] = None
    lr: Annotated[float | None, _Recipe("Peak learning rate; default: 0.004.", "X", recipe="optimizer.lr")] = None
    patience: Annotated[
        int | None, _Recipe("Stop after N epochs without improvement; 0: never.", "N", 0, recipe="train.patience")
    ] = None
    resume: Annotated[bool, _Start("Resume the training in RUN_DIR; start if there is none.")] = False
    init: Annotated[Path | None, _Start("Start from a saved model; its classes may differ.", "MODEL")] = None
    overwrite: Annotated[bool, _Start("Replace a finished training.")] = False
    ranks: Annotated[
        int | None, Option("Divide each batch among N processes, or GPUs, for the same result.", "N", 1, MAX_WORKERS)
    ] = None
    scheduler: Annotated[
        str | None, Option("Train on the workers of this Dask cluster.", "tcp://HOST:PORT")
    ] = None
    device: Device = "auto"
    precision: Precision = "auto"
    threads: Threads = None
    workers: Workers = None
    ram_budget: Annotated[
        int,
        Option("Memory for images; if all fit, they are read once.", "SIZE", parse=parse_bytes, default="1GB"),
    ] = 10**9
    cache: Annotated[
        Literal["auto", "device", "none"],
        Option("Keep the training images in the GPU's memory; auto: if they take at most half of it."),
    ] = "auto"
    checkpoint_minutes: Annotated[float, Option("Minutes between checkpoints within an epoch.", "X", 0)] = 5.0
    checkpoint_steps: Annotated[int | None, Option("Steps between checkpoints, if that comes first.", "N", 1)] = None


@dataclass(frozen=True)
class FindLrOptions(RecipeOptions):
    """How to search for a learning rate."""

    steps: Annotated[int, Option("Learning rates to try, one per step.", "N", 20, 1000)] = 100
    plot: Annotated[Path | None, Option("Plot loss against learning rate.", "FILE.png")] = None
    device: Device = "auto"
    precision: Precision = "auto"
    threads: Threads = None
    workers: Workers = None


@dataclass(frozen=True)
class ClassifyOptions:
    """How to classify, and what the table holds."""

    topk: Annotated[int, _Table("Labels per image, the most likely first.", "K", 1)] = 1
    threshold: Annotated[float | None, _Table("Below this probability the label is 'unknown'.", "X", 0, 1)] = None
    format: Annotated[
        Literal["csv", "parquet"] | None, _Table("Format; default: from the ending of OUT.")
    ] = None
    spreadsheet_safe: Annotated[bool, _Table("Escape cells that a spreadsheet would run as formulas.")] = False
    overwrite: Annotated[bool, _Table("Replace a finished table.")] = False
    views: Annotated[
        Literal["none", "mirror", "mirror_shift"],
        Option("Test-time augmentation: average 2 or 6 views of each image."),
    ] = "none"
    batch_size: Annotated[int, Option("Images per forward pass.", "N", 1)] = 32
    model: ModelClass = None
    device: Device = "auto"
    precision: Precision = "auto"
    workers: Annotated[
        int | None,
        Option(
            "Decoding threads; default: one per CPU. On a cluster: of each worker that has a GPU.", "N", 1, MAX_WORKERS
        ),
    ] = None
    scheduler: Annotated[
        str | None, Option("Use this Dask cluster instead of local threads.", "tcp://HOST:PORT")
    ] = None
    max_pixels: Annotated[
        int, Option("Refuse images of more pixels.", "N|NM", parse=parse_pixels, default=f"{MAX_PIXELS}")
    ] = MAX_PIXELS


@dataclass(frozen=True)
class VerifyOptions:
    """What a verification writes."""

    report: Annotated[Path | None, Option("List each image in a damaged chunk in this file.", "FILE.csv")] = None


@dataclass(frozen=True)
class InfoOptions:
    """What to report about a dataset."""

    sheet: Annotated[Path | None, Option("File of the contact sheet; default: in the dataset.", "FILE.png")] = None
    no_sheet: Annotated[bool, Option("Draw no contact sheet.")] = False
    shuffle: Annotated[bool, Option("Compare the order of an epoch with random permutations.")] = False
    batch_size: Annotated[int, Option("With --shuffle: images per step.", "N", 1)] = 64
    micro_batch: Annotated[int, Option("With --shuffle: images of a micro-batch; 0: the batch.", "N", 0)] = 0


@dataclass(frozen=True)
class ReportOptions:
    """Where a report goes, and what it reads."""

    out: Annotated[Path | None, Option("File to write; default: in RUN_DIR.", "FILE.html")] = None
    dataset: Annotated[Path | None, Option("The training's dataset, if it has moved.", "DATASET.zarr")] = None
    model: ModelClass = None
    device: Device = "auto"
    precision: Precision = "auto"
    workers: Workers = None


@dataclass(frozen=True)
class SelftestOptions:
    """What a self-test checks."""

    device: Device = "auto"
    precision: Precision = "auto"
