"""Options of every job except `build` (see `pipeline.build.options`), for the command line and the Python interface.

Imports nothing heavy: `--help` must not wait for NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_type_hints

from jobs.console.sizes import parse_bytes
from logpose.common.options import Option

Device: TypeAlias = Annotated[Literal["auto", "cpu", "cuda"], Option("Where to compute; auto uses a GPU if one works.")]
Workers: TypeAlias = Annotated[int | None, Option("Decoding threads; default: one per CPU.", "N", 1)]
Overwrite: TypeAlias = Annotated[bool, Option("Replace a finished output.")]
ModelClass: TypeAlias = Annotated[
    str | None,
    Option("Class of the network, unless it is one of logpose's.", "PACKAGE.MODULE:CLASS", flag="--model"),
]


@dataclass(frozen=True)
class RecipeOptions:
    """Where a recipe comes from: see `jobs.recipes.config.resolve`."""

    recipe: Annotated[str | None, Option("Recipe by name: see 'logpose recipes'.", "NAME", group="Recipe")] = None
    config: Annotated[Path | None, Option("Recipe file, such as RUN_DIR/config.toml.", "FILE.toml", group="Recipe")] = (
        None
    )
    set: Annotated[tuple[str, ...], Option("One value of the recipe; repeatable.", "a.b=v", group="Recipe")] = ()
    model: Annotated[
        str | None,
        Option("Architecture, such as resnet9, or PACKAGE.MODULE:CLASS.", "NAME", group="Recipe", recipe="model.name"),
    ] = None
    batch_size: Annotated[int | None, Option("Images per step.", "N", 1, group="Recipe", recipe="train.batch_size")] = (
        None
    )
    seed: Annotated[
        int | None,
        Option("Seed of weights, order and augmentation.", "N", 0, group="Recipe", recipe="train.seed"),
    ] = None

    def recipe_values(self) -> dict[str, Any]:
        """Return the options that set a value of the recipe, as `section.key` -> value, without those not given."""
        hints = get_type_hints(type(self), include_extras=True)
        found = {}
        for field in fields(self):
            for option in getattr(hints[field.name], "__metadata__", ()):
                if option.recipe and getattr(self, field.name) is not None:
                    found[option.recipe] = getattr(self, field.name)
        return found


@dataclass(frozen=True)
class TrainOptions(RecipeOptions):
    """How to train. The recipe's own values are in `cnn.training.recipe`."""

    epochs: Annotated[int | None, Option("Passes over the images.", "N", 1, group="Recipe", recipe="train.epochs")] = (
        None
    )
    lr: Annotated[float | None, Option("Peak learning rate.", "X", group="Recipe", recipe="optimizer.lr")] = None
    patience: Annotated[
        int | None,
        Option("Stop after N epochs without improvement; 0: never.", "N", 0, group="Recipe", recipe="train.patience"),
    ] = None
    resume: Annotated[bool, Option("Resume the training in RUN_DIR; start if there is none.", group="Start")] = False
    init: Annotated[
        Path | None, Option("Start from a saved model; its classes may differ.", "MODEL", group="Start")
    ] = None
    overwrite: Annotated[bool, Option("Replace a finished training.", group="Start")] = False
    device: Device = "auto"
    workers: Workers = None
    ram_budget: Annotated[
        int,
        Option("Memory for images; if all fit, they are read once.", "SIZE", parse=parse_bytes, default="1GB"),
    ] = 10**9
    checkpoint_minutes: Annotated[float, Option("Minutes between checkpoints within an epoch.", "X", 0)] = 5.0
    checkpoint_steps: Annotated[int | None, Option("Steps between checkpoints, if that comes first.", "N", 1)] = None


@dataclass(frozen=True)
class FindLrOptions(RecipeOptions):
    """How to search for a learning rate."""

    steps: Annotated[int, Option("Learning rates to try, one per step.", "N", 20, 1000)] = 100
    plot: Annotated[Path | None, Option("Plot loss against learning rate.", "FILE.png")] = None
    device: Device = "auto"
    workers: Workers = None


@dataclass(frozen=True)
class ClassifyOptions:
    """How to classify, and what the table holds."""

    topk: Annotated[int, Option("Labels per image, the most likely first.", "K", 1, group="Table")] = 1
    threshold: Annotated[
        float | None, Option("Below this probability the label is 'unknown'.", "X", 0, 1, group="Table")
    ] = None
    format: Annotated[
        Literal["csv", "parquet"] | None, Option("Format; default: from the ending of OUT.", group="Table")
    ] = None
    spreadsheet_safe: Annotated[
        bool, Option("Escape cells that a spreadsheet would run as formulas.", group="Table")
    ] = False
    overwrite: Annotated[bool, Option("Replace a finished table.", group="Table")] = False
    views: Annotated[
        Literal["none", "mirror", "mirror_shift"],
        Option("Test-time augmentation: average 2 or 6 views of each image."),
    ] = "none"
    batch_size: Annotated[int, Option("Images per forward pass.", "N", 1)] = 32
    model: ModelClass = None
    device: Device = "auto"
    workers: Workers = None
    scheduler: Annotated[str | None, Option("Use this Dask cluster instead of local threads.", "tcp://HOST:PORT")] = (
        None
    )


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


@dataclass(frozen=True)
class ReportOptions:
    """Where a report goes, and what it reads."""

    out: Annotated[Path | None, Option("File to write; default: in RUN_DIR.", "FILE.html")] = None
    dataset: Annotated[Path | None, Option("The training's dataset, if it has moved.", "DATASET.zarr")] = None
    model: ModelClass = None
    device: Device = "auto"
    workers: Workers = None
