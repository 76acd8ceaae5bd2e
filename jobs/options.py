"""The options of every job but `build` (pipeline.build.options), each once.

`jobs.commands` makes the command line from these fields, and the same objects go through to the jobs. Nothing heavy is
imported here: `--help` must not wait for NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_type_hints

from jobs.console.sizes import parse_bytes
from logpose.common.options import Option

Device: TypeAlias = Annotated[
    Literal["auto", "cpu", "cuda"], Option("Where to compute; auto takes a GPU if one works.")
]
Workers: TypeAlias = Annotated[
    int | None, Option("Threads that read and decode images; default: one per CPU.", "N", 1)
]
Overwrite: TypeAlias = Annotated[bool, Option("Replace a finished output.")]
ModelName: TypeAlias = Annotated[
    str | None, Option("Architecture, such as resnet9, or PACKAGE.MODULE:CLASS.", "NAME", recipe="model.name")
]
ModelClass: TypeAlias = Annotated[
    str | None,
    Option("Class of the network, where it is not one of logpose's.", "PACKAGE.MODULE:CLASS", flag="--model"),
]
BatchSize: TypeAlias = Annotated[int | None, Option("Images per step.", "N", 1, recipe="train.batch_size")]
Seed: TypeAlias = Annotated[
    int | None, Option("Seed of weights, order and augmentation.", "N", 0, recipe="train.seed")
]
RecipeName: TypeAlias = Annotated[str | None, Option("Recipe by name: see 'logpose recipes'.", "NAME")]
RecipeFile: TypeAlias = Annotated[Path | None, Option("Recipe to read, such as RUN_DIR/config.toml.", "FILE.toml")]
RecipeValues: TypeAlias = Annotated[
    tuple[str, ...], Option("One value of the recipe; repeatable.", "a.b=v", flag="--set")
]


@dataclass(frozen=True)
class RecipeOptions:
    """Where a recipe comes from: see `jobs.recipes.config.resolve`."""

    model: ModelName = None
    batch_size: BatchSize = None
    seed: Seed = None
    recipe: RecipeName = None
    config: RecipeFile = None
    set: RecipeValues = ()

    def recipe_values(self) -> dict[str, Any]:
        """The options that set a value of the recipe, as `section.key` -> value; those not given are left out."""
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

    epochs: Annotated[int | None, Option("Times to see each image.", "N", 1, recipe="train.epochs")] = None
    lr: Annotated[float | None, Option("Peak learning rate.", "X", recipe="optimizer.lr")] = None
    patience: Annotated[
        int | None,
        Option("Stop after N epochs without a better one; 0: never.", "N", 0, recipe="train.patience"),
    ] = None
    device: Device = "auto"
    workers: Workers = None
    resume: Annotated[bool, Option("Resume the training in RUN_DIR; start if there is none.")] = False
    init: Annotated[Path | None, Option("Start from a saved model; its classes may differ.", "MODEL")] = None
    checkpoint_minutes: Annotated[float, Option("Save within an epoch this often.", "X", 0)] = 5.0
    checkpoint_steps: Annotated[
        int | None, Option("Or after so many steps, whichever comes first.", "N", 1)
    ] = None
    ram_budget: Annotated[
        int,
        Option("Memory for images; if all fit in, they are read once.", "SIZE", parse=parse_bytes, default="1GB"),
    ] = 10**9
    overwrite: Overwrite = False


@dataclass(frozen=True)
class ClassifyOptions:
    """How to classify, and what the table holds."""

    topk: Annotated[int, Option("Labels per image, the most likely first.", "K", 1)] = 1
    threshold: Annotated[
        float | None, Option("Below this probability the label is 'unknown'.", "X", 0, 1)
    ] = None
    format: Annotated[
        Literal["csv", "parquet"] | None, Option("Format of the table; default: by the ending of OUT.")
    ] = None
    spreadsheet_safe: Annotated[bool, Option("Escape cells that a spreadsheet would run as formulas.")] = False
    views: Annotated[
        Literal["none", "mirror", "mirror_shift"],
        Option("Test-time augmentation: average over 2 or 6 views of each image."),
    ] = "none"
    batch_size: Annotated[int, Option("Images computed at a time.", "N", 1)] = 32
    device: Device = "auto"
    model: ModelClass = None
    workers: Workers = None
    scheduler: Annotated[
        str | None, Option("Work on this Dask cluster instead of on threads here.", "tcp://HOST:PORT")
    ] = None
    overwrite: Overwrite = False


@dataclass(frozen=True)
class FindLrOptions(RecipeOptions):
    """How to search for a learning rate."""

    steps: Annotated[int, Option("Learning rates to try, one per step.", "N", 20, 1000)] = 100
    device: Device = "auto"
    workers: Workers = None
    plot: Annotated[Path | None, Option("Plot loss against learning rate.", "FILE.png")] = None


@dataclass(frozen=True)
class VerifyOptions:
    """What a verification writes."""

    report: Annotated[Path | None, Option("Write each image in a damaged chunk to this file.", "FILE.csv")] = None


@dataclass(frozen=True)
class InfoOptions:
    """What to say of a dataset."""

    sheet: Annotated[
        Path | None, Option("Where to draw the contact sheet; default: in the dataset.", "FILE.png")
    ] = None
    no_sheet: Annotated[bool, Option("Draw no contact sheet.")] = False
    shuffle: Annotated[bool, Option("Measure how well an epoch shuffles, against a true permutation.")] = False


@dataclass(frozen=True)
class ReportOptions:
    """Where a report goes, and from which dataset."""

    out: Annotated[Path | None, Option("Where to write; default: in RUN_DIR.", "FILE.html")] = None
    dataset: Annotated[Path | None, Option("The training's dataset, if it has moved.", "DATASET.zarr")] = None
    device: Device = "auto"
    model: ModelClass = None
    workers: Workers = None
