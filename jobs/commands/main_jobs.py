"""The three main commands: build, train, classify."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.app import command
from jobs.console.output import say
from jobs.console.prompts import (
    choose,
    existing_dataset,
    existing_model,
    existing_path,
    interactive,
    no_problem,
    path_argument,
    unused_path,
)
from jobs.options import ClassifyOptions, TrainOptions
from logpose.common.errors import printable
from pipeline.build.options import BuildOptions


@command(BuildOptions)
def build(
    images: Annotated[
        Path | None, typer.Argument(metavar="IMAGES", help="A folder per class, or train/ and val/ of such.")
    ] = None,
    dataset: Annotated[Path | None, typer.Argument(metavar="DATASET.zarr", help="Dataset to write.")] = None,
    *,
    options: BuildOptions,
) -> None:
    """Build a dataset from a folder of images.

    The dataset lists the files that cannot be read in failures.csv and the near-duplicates (resized, recompressed,
    flipped, rotated, recoloured or cropped) in duplicates.csv.

    \b
    Example: logpose build images flags.zarr --size 128 --val 0.2
    """
    from jobs.datasets.build import build as run

    images = path_argument(images, "IMAGES", "Folder of images, one folder per class inside", "build", existing_path)
    dataset = path_argument(
        dataset, "DATASET.zarr", "Dataset to write", "build", default=f"{images.resolve().name}.zarr"
    )
    run(images, dataset, options)
    say(printable(f"next: {shlex.join(['logpose', 'train', str(dataset), str(_default_run_dir(dataset))])}"))


@command(TrainOptions)
def train(
    dataset: Annotated[Path | None, typer.Argument(metavar="DATASET.zarr", help="Written by 'logpose build'.")] = None,
    run_dir: Annotated[Path | None, typer.Argument(metavar="RUN_DIR", help="Folder for the results.")] = None,
    *,
    options: TrainOptions,
) -> None:
    """Train a network on a dataset.

    RUN_DIR receives model.safetensors (best epoch), last.safetensors (for --resume), config.toml, metrics.csv,
    classes.csv, summary.json, curves.png and confusion.png. Ctrl-C saves a checkpoint.

    \b
    Example: logpose train flags.zarr runs/flags --epochs 20 \\
               --set optimizer.weight_decay=0.001
    """
    from jobs.training.train import train as run

    prompted = interactive() and (dataset is None or run_dir is None)
    dataset = path_argument(dataset, "DATASET.zarr", "Dataset to train on", "train", existing_dataset)
    run_dir = path_argument(
        run_dir, "RUN_DIR", "Folder for the results", "train", default=str(_default_run_dir(dataset))
    )
    unfinished = (run_dir / "last.safetensors").exists()
    if unfinished and not options.resume and not options.overwrite and interactive():
        say(printable(f"{run_dir} holds a training."))
        answer = choose("Continue, or start from scratch?", ("continue", "scratch"))
        options = replace(options, resume=answer == "continue", overwrite=answer == "scratch")
    elif prompted and not unfinished and options.init is None:
        answer = choose("Train from scratch, or start from a saved model?", ("scratch", "model"))
        if answer == "model":
            model = path_argument(None, "MODEL", "Model to start from", "train", existing_model)
            options = replace(options, init=model)
    run(dataset, run_dir, options)


@command(ClassifyOptions)
def classify(
    images: Annotated[
        Path | None, typer.Argument(metavar="IMAGES", help="A folder of any depth, an image, or a DATASET.zarr.")
    ] = None,
    model_file: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="RUN_DIR of a training, or its model.safetensors.")
    ] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT.csv", help="Table to write.")] = None,
    *,
    options: ClassifyOptions,
) -> None:
    """Classify the images of a folder into a CSV or Parquet table.

    The table has one row per file, sorted by path. The row of a file that cannot be read gives the reason.

    \b
    Example: logpose classify new runs/flags out.csv --topk 3
    """
    from jobs.classification.classify import classify as run

    images = path_argument(images, "IMAGES", "Folder of images to classify", "classify", existing_path)
    model_file = path_argument(model_file, "MODEL", "Folder of a training, or model file", "classify", existing_model)
    problem = no_problem if options.overwrite else unused_path
    default = f"{images.resolve().stem}.csv"
    out = path_argument(out, "OUT.csv", "Table to write", "classify", problem, default)
    run(images, model_file, out, options)


def _default_run_dir(dataset: Path) -> Path:
    return Path("runs") / dataset.resolve().stem
