"""Commands around the three jobs: recipes, verify, info; and the demo."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.options import Built, Job, app
from jobs.prompts import path_argument


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
def verify(
    dataset: Built = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write each picture in a damaged chunk to this file.")
    ] = None,
) -> Job:
    """Read every chunk of a dataset and check it.

    Exits with 1 if anything is damaged, each damage on a line.

    \b
    Example: logpose verify flags.zarr
    """
    dataset = path_argument(dataset, "DATASET.zarr", "Dataset to check", "verify")

    def job() -> int:
        from jobs.verify import verify as run

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
    """Say what is in a dataset, and draw some pictures of every class into its contact-sheet.png.

    \b
    Example: logpose info flags.zarr
    """
    dataset = path_argument(dataset, "DATASET.zarr", "Dataset to look at", "info")

    def job() -> int:
        from jobs.info import info as run

        return run(dataset, sheet=sheet, no_sheet=no_sheet, shuffle=shuffle)

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
