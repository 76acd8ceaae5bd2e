"""Commands around the three main ones: recipes, find-lr, verify, info, report, selftest; and the demo."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from jobs.commands.app import command
from jobs.console.output import emit, say
from jobs.console.prompts import (
    existing_dataset,
    existing_dataset_or_run,
    existing_model,
    is_run,
    path_argument,
)
from jobs.options import FindLrOptions, InfoOptions, ReportOptions, SelftestOptions, VerifyOptions

DatasetArgument: TypeAlias = Annotated[
    Path | None, typer.Argument(metavar="DATASET.zarr", help="Written by 'logpose build'.")
]


@command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one.")] = None,
) -> None:
    """List the recipes for 'train --recipe', or print one.

    \b
    Example: logpose recipes cifar-speedrun > mine.toml
    """
    from jobs.recipes import recipe_names, recipe_summary, recipe_text

    if name is not None:
        text = recipe_text(name)
        say(text.removesuffix("\n"), wrap=False)
        emit({"name": name, "toml": text})
        return
    summaries = {each: recipe_summary(each) for each in recipe_names()}
    for each, summary in summaries.items():
        say(f"{each:{max(map(len, summaries))}}  {summary}")
    emit(summaries)


@command(FindLrOptions)
def find_lr(dataset: DatasetArgument = None, *, options: FindLrOptions) -> None:
    """Find a learning rate to train with.

    Trains for a few steps at rising learning rates, from a thousandth of the recipe's to a hundred times it, and
    suggests the one with the lowest loss. Writes nothing but --plot.

    \b
    Example: logpose find-lr flags.zarr --set optimizer.name=sgd
    """
    from jobs.training.find_lr import find_lr as run

    run(path_argument(dataset, "DATASET.zarr", "Dataset to train on", "find-lr", existing_dataset), options)


@command(VerifyOptions)
def verify(dataset: DatasetArgument = None, *, options: VerifyOptions) -> int:
    """Read every chunk of a dataset and check it.

    Prints each damage on a line; the exit code is 1 if there is any.

    \b
    Example: logpose verify flags.zarr
    """
    from jobs.datasets.verify import verify as run

    return run(path_argument(dataset, "DATASET.zarr", "Dataset to check", "verify", existing_dataset), options)


@command(InfoOptions)
def info(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="A DATASET.zarr, or RUN_DIR of a training.")
    ] = None,
    *,
    options: InfoOptions,
) -> None:
    """Describe a dataset, and draw a contact sheet; or describe a training.

    contact-sheet.png, in the dataset, shows some images of every class. Of a training: how far it is, where its time
    went, and what each rank did. The options are for datasets.

    \b
    Example: logpose info flags.zarr
    """
    from jobs.datasets.info import info as run
    from jobs.training.info import info_run

    path = path_argument(path, "PATH", "Dataset or training to describe", "info", existing_dataset_or_run)
    if is_run(path):
        info_run(path)
    else:
        run(path, options)


@command(ReportOptions)
def report(
    run_dir: Annotated[Path | None, typer.Argument(metavar="RUN_DIR", help="Folder of a training.")] = None,
    *,
    options: ReportOptions,
) -> None:
    """Report in one HTML file how good a trained network is.

    RUN_DIR/report.html needs no other file: curves, classes, the most frequent mistakes with images, labels that
    may be wrong, near-duplicates, and the command that repeats the training.

    \b
    Example: logpose report runs/flags
    """
    from jobs.report import report as run

    run(path_argument(run_dir, "RUN_DIR", "Folder of the training", "report", existing_model), options)


@command(SelftestOptions)
def selftest(*, options: SelftestOptions) -> int:
    """Check that this machine's CPU or GPU computes correctly.

    Compares every layer, loss, optimizer and augmentation with a plain implementation, and gradients with numeric
    derivatives. The exit code is 1 if a result is wrong.

    \b
    Example: logpose selftest --device cuda
    """
    from jobs.selftest.selftest import selftest as run

    return run(options)


@command()
def demo(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to work in.")] = Path("demo")) -> None:
    """Draw pirate flags, train on them, classify new ones.

    Runs all jobs in a few minutes, and ends with where to look.

    \b
    Example: logpose demo
    """
    from jobs.demo import demo as run

    run(folder)
