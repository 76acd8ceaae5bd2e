"""The three jobs: build, train, classify."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.options import (
    AnyImages,
    BatchSize,
    Built,
    Codec,
    ComputeOn,
    Device,
    Fit,
    Images,
    Job,
    ModelName,
    Overwrite,
    RecipeFile,
    RecipeName,
    RecipeValues,
    Scheduler,
    Seed,
    TableFormat,
    Views,
    Workers,
    app,
)
from jobs.console.prompts import choose, interactive, path_argument
from jobs.console.sizes import parse_bytes


@app.command()
def build(
    images: Images = None,
    dataset: Annotated[Path | None, typer.Argument(metavar="DATASET.zarr", help="Where to write.")] = None,
    size: Annotated[
        str, typer.Option(metavar="N | WIDTHxHEIGHT", help="Pixels of every image in the dataset.")
    ] = "128",
    fit: Annotated[Fit, typer.Option(help="Add a border, cut off, or distort to get there.")] = Fit.pad,
    val: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="X", help="Share for validation, if there is no val/ folder."),
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the split and of the order of rows.")] = 0,
    group_copies: Annotated[
        bool, typer.Option(help="Find copies of the same image, and keep them on one side of the split.")
    ] = True,
    codec: Annotated[Codec, typer.Option(help="How pixels are compressed; photographs hardly are.")] = Codec.none,
    workers: Workers = None,
    scheduler: Scheduler = None,
    max_failures: Annotated[
        str | None,
        typer.Option(metavar="N | N%", help="Stop if more files, or more of them, cannot be read."),
    ] = None,
    overwrite: Overwrite = False,
) -> Job:
    """Turn a folder of images into a dataset.

    Images that cannot be read are left out and listed in failures.csv inside the dataset; copies of the
    same image, however resized, recompressed, mirrored, turned, recoloured or cropped, in duplicates.csv.

    \b
    Example: logpose build images flags.zarr --size 128 --val 0.2
    """
    images = path_argument(images, "IMAGES", "Folder of images, one folder per class inside", "build")
    default = f"{images.resolve().name}.zarr"
    dataset = path_argument(dataset, "DATASET.zarr", "Dataset to write", "build", default)

    def job() -> int:
        from jobs.datasets.build import build as run

        return run(
            images,
            dataset,
            size=size,
            fit=fit.value,
            val=val,
            seed=seed,
            group_copies=group_copies,
            codec=codec.value,
            workers=workers,
            scheduler=scheduler,
            max_failures=max_failures,
            overwrite=overwrite,
        )

    return job


@app.command()
def train(
    dataset: Built = None,
    run_dir: Annotated[Path | None, typer.Argument(metavar="RUN_DIR", help="Folder for the results.")] = None,
    model: ModelName = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Times to see each image.")] = None,
    batch_size: BatchSize = None,
    lr: Annotated[float | None, typer.Option(metavar="X", help="Learning rate at its peak.")] = None,
    seed: Seed = None,
    patience: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Stop after N epochs without a better one; 0 never.")
    ] = None,
    device: ComputeOn = Device.auto,
    workers: Workers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with RUN_DIR; start if it is new.")] = False,
    init: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Start from a saved model; its classes may differ.")
    ] = None,
    recipe: RecipeName = None,
    config: RecipeFile = None,
    set_: RecipeValues = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0, metavar="X", help="Save within an epoch this often, to resume from.")
    ] = 5.0,
    checkpoint_steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Or after so many steps, whichever comes first.")
    ] = None,
    ram_budget: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for images; if all fit in, they are read once.")
    ] = "1GB",
    overwrite: Overwrite = False,
) -> Job:
    """Train a network on a dataset.

    RUN_DIR gets model.safetensors (the best on validation), last.safetensors (to go on from), config.toml,
    metrics.csv, classes.csv, summary.json, curves.png and confusion.png. Ctrl-C saves and says how to go on.

    \b
    Example: logpose train flags.zarr runs/flags --epochs 20 --set optimizer.weight_decay=0.001
    """
    asked = interactive() and (dataset is None or run_dir is None)
    dataset = path_argument(dataset, "DATASET.zarr", "Dataset to train on", "train")
    default = f"runs/{dataset.resolve().stem}"
    run_dir = path_argument(run_dir, "RUN_DIR", "Folder for the results", "train", default)
    unfinished = (run_dir / "last.safetensors").exists()
    if unfinished and not resume and not overwrite and interactive():
        question = f"{run_dir} holds a training. Continue, or start from scratch?"
        answer = choose(question, ("continue", "scratch"))
        resume, overwrite = answer == "continue", answer == "scratch"
    elif asked and not unfinished and init is None:
        answer = choose("Train from scratch, or start from a saved model?", ("scratch", "model"))
        if answer == "model":
            init = path_argument(None, "MODEL", "Model to start from", "train")

    def job() -> int:
        from jobs.options import TrainOptions
        from jobs.training.train import train as run

        options = TrainOptions(
            model=model,
            batch_size=batch_size,
            seed=seed,
            recipe=recipe,
            config=config,
            set=tuple(set_ or ()),
            epochs=epochs,
            lr=lr,
            patience=patience,
            device=device.value,
            workers=workers,
            resume=resume,
            init=init,
            checkpoint_minutes=checkpoint_minutes,
            checkpoint_steps=checkpoint_steps,
            ram_budget=parse_bytes(ram_budget),
            overwrite=overwrite,
        )
        run(dataset, run_dir, options)
        return 0

    return job


@app.command()
def classify(
    images: AnyImages = None,
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="model.safetensors of a training, or its RUN_DIR.")
    ] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT.csv", help="Where to write.")] = None,
    topk: Annotated[
        int, typer.Option(min=1, metavar="K", help="Labels for each image, the likeliest first.")
    ] = 1,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="X", help="Below this probability the label is 'unknown'."),
    ] = None,
    table_format: Annotated[
        TableFormat | None, typer.Option("--format", help="Of the table; by the ending of OUT if not given.")
    ] = None,
    spreadsheet_safe: Annotated[
        bool, typer.Option("--spreadsheet-safe", help="Defuse cells that a spreadsheet would run as formulas.")
    ] = False,
    views: Annotated[
        Views, typer.Option(help="Look two or six times, also mirrored and moved; takes as much longer.")
    ] = Views.none,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images computed at a time.")] = 32,
    device: ComputeOn = Device.auto,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> Job:
    """Classify every file of a folder into a CSV or Parquet table.

    One row for each file, sorted by path; a file that cannot be read is a row with the reason.

    \b
    Example: logpose classify new runs/flags/model.safetensors out.csv --topk 3
    """
    images = path_argument(images, "IMAGES", "Folder of images to classify", "classify")
    model = path_argument(model, "MODEL", "Model", "classify")
    out = path_argument(out, "OUT.csv", "Table to write", "classify", f"{images.resolve().stem}.csv")

    def job() -> int:
        from jobs.classification.classify import classify as run

        return run(
            images,
            model,
            out,
            topk=topk,
            threshold=threshold,
            table_format=table_format.value if table_format else None,
            spreadsheet_safe=spreadsheet_safe,
            views=views.value,
            batch_size=batch_size,
            device=device.value,
            workers=workers,
            scheduler=scheduler,
            overwrite=overwrite,
        )

    return job
