"""Commands around the three jobs: recipes, find-lr, verify, info, report; and the demo."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.options import (
    BatchSize,
    Built,
    ComputeOn,
    Device,
    Job,
    ModelName,
    RecipeFile,
    RecipeName,
    RecipeValues,
    Seed,
    Workers,
    app,
)  # fmt: skip
from jobs.console.prompts import path_argument


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one.")] = None,
) -> Job:
    """List the recipes that 'train --recipe' knows, or print one.

    \b
    Example: logpose recipes cifar-speedrun > mine.toml
    """

    def job() -> int:
        from jobs.recipes import recipe_names, recipe_summary, recipe_text

        if name is not None:
            print(recipe_text(name), end="")
            return 0
        names = recipe_names()
        for each in names:
            print(f"{each:{max(map(len, names))}}  {recipe_summary(each)}")
        return 0

    return job


@app.command()
def find_lr(
    dataset: Built = None,
    model: ModelName = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    steps: Annotated[int, typer.Option(min=20, max=1000, metavar="N", help="Rates to try, one for each step.")] = 100,
    device: ComputeOn = Device.auto,
    workers: Workers = None,
    recipe: RecipeName = None,
    config: RecipeFile = None,
    set_: RecipeValues = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw loss against rate.")] = None,
) -> Job:
    """Find a learning rate to train with.

    Begins a training at rates that rise from a thousandth of the recipe's to a hundred times it, and suggests the
    one at which the loss is lowest. Takes as long as so many steps of a training; writes nothing but --plot.

    \b
    Example: logpose find-lr flags.zarr --set optimizer.name=sgd
    """
    dataset = path_argument(dataset, "DATASET.zarr", "Dataset to try rates on", "find-lr")

    def job() -> int:
        from jobs.options import FindLrOptions
        from jobs.training.find_lr import find_lr as run

        options = FindLrOptions(
            model=model,
            batch_size=batch_size,
            seed=seed,
            recipe=recipe,
            config=config,
            set=tuple(set_ or ()),
            steps=steps,
            device=device.value,
            workers=workers,
            plot=plot,
        )
        run(dataset, options)
        return 0

    return job


@app.command()
def verify(
    dataset: Built = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write each image in a damaged chunk to this file.")
    ] = None,
) -> Job:
    """Read every chunk of a dataset and check it.

    Exits with 1 if anything is damaged, each damage on a line.

    \b
    Example: logpose verify flags.zarr
    """
    dataset = path_argument(dataset, "DATASET.zarr", "Dataset to check", "verify")

    def job() -> int:
        from jobs.datasets.verify import verify as run

        return run(dataset, report_to=report)

    return job


@app.command()
def info(
    dataset: Built = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Where to draw; else in the dataset.")] = None,
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Draw no contact sheet.")] = False,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle", help="Measure how well an epoch shuffles, against a true permutation."),
    ] = False,
) -> Job:
    """Say what is in a dataset, and draw some images of every class into its contact-sheet.png.

    \b
    Example: logpose info flags.zarr
    """
    dataset = path_argument(dataset, "DATASET.zarr", "Dataset to look at", "info")

    def job() -> int:
        from jobs.datasets.info import info as run

        return run(dataset, sheet=sheet, no_sheet=no_sheet, shuffle=shuffle)

    return job


@app.command()
def report(
    run_dir: Annotated[Path | None, typer.Argument(metavar="RUN_DIR", help="Folder of a training.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Where to write; else in RUN_DIR.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(metavar="DATASET.zarr", help="The training's dataset, if it has moved.")
    ] = None,
    device: ComputeOn = Device.auto,
    workers: Workers = None,
) -> Job:
    """Say how good a trained network is and where it is wrong, with images, in one HTML file.

    RUN_DIR/report.html holds all it shows and needs no network: curves, classes, the commonest mistakes, labels that
    may be wrong, copies among the images, and the command to train once more.

    \b
    Example: logpose report runs/flags
    """
    run_dir = path_argument(run_dir, "RUN_DIR", "Folder of the training", "report")

    def job() -> int:
        from jobs.options import ReportOptions
        from jobs.report import report as run

        run(run_dir, ReportOptions(out=out, dataset=dataset, device=device.value, workers=workers))
        return 0

    return job


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to work.")] = Path("demo"),
) -> Job:
    """Draw pirate flags, learn them, recognise new ones.

    All jobs in a row, in a few minutes; shows where to look.

    \b
    Example: logpose demo
    """

    def job() -> int:
        from jobs.demo import demo as run

        return run(folder)

    return job
