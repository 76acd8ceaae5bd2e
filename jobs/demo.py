"""All jobs in a row on drawn pirate flags: something to watch, and a check that everything works."""

import csv
from itertools import islice
from pathlib import Path
from textwrap import wrap
from typing import Any

from jobs.classification.classify import classify
from jobs.console.output import emit, say
from jobs.console.progress import bar, plural
from jobs.datasets.build import build
from jobs.errors import JobError
from jobs.flags import CREWS, draw_flags
from jobs.options import ClassifyOptions, ReportOptions, TrainOptions
from jobs.report import report
from jobs.training.train import train
from logpose.common.cpus import available_cpus
from pipeline.build.options import BuildOptions
from pipeline.dataset.store import Dataset
from pipeline.errors import DatasetError

# Flags per crew, and the seed they are drawn from. Seeds differ, so that no flag is in two of the sets.
TRAIN, VAL, NEW = (120, 1), (30, 2), (2, 3)
SIZE = 64  # pixels
# Small enough for two CPUs to finish in two or three minutes. The flags already vary in pose, colour and cover, so
# augmentation is weak.
RECIPE: dict[str, Any] = {
    "model.name": "resnet9",
    "model.width": 16,
    "train.epochs": 14,
    "train.batch_size": 32,
    "optimizer.lr": 0.01,
    "schedule.warmup": 0.2,
    "augment.crop_scale": 1.0,
    "augment.shift": 0.0625,
}


def demo(folder: Path) -> None:
    """Draw flags, build, train, classify and report in `folder`, skipping the steps that are done.

    Raises what these jobs raise.
    """
    flags, dataset, run_dir = folder / "flags", folder / "flags.zarr", folder / "run"
    new, out = folder / "new", folder / "new.csv"

    say(f"Flags of {len(CREWS)} pirate crews: to train on, to validate, and to classify")
    for place, (count, seed) in ((flags / "train", TRAIN), (flags / "val", VAL), (new, NEW)):
        _draw(place, count, seed)

    _announce("build", flags, dataset, f"--size {SIZE}")
    if _is_built(dataset):
        say(f"{dataset} exists already")
    else:
        build(flags, dataset, BuildOptions(size=(SIZE, SIZE), overwrite=True))

    settings = tuple(f"{key}={value}" for key, value in RECIPE.items())
    _announce("train", dataset, run_dir, "--resume", *(f"--set\0{setting}" for setting in settings))
    try:
        train(dataset, run_dir, TrainOptions(set=settings, resume=True))
    except JobError as error:
        raise JobError(f"{error} (or remove {folder} and run the demo again)") from error

    _announce("classify", new, run_dir, out, "--topk 2 --overwrite")
    classify(new, run_dir, out, ClassifyOptions(topk=2, overwrite=True))

    _announce("report", run_dir)
    page = report(run_dir, ReportOptions())

    say("\nResults")
    accuracy = _show(out)
    for path, what in ((run_dir / "curves.png", "learning curves"), (page, "accuracy, and mistakes with images")):
        say(f"  {path}: {what}")
    emit({"dataset": dataset, "run_dir": run_dir, "table": out, "report": page, "accuracy": accuracy})


def _announce(*words: object) -> None:
    """Print the command that does the next step; a NUL stands for a space at which not to wrap."""
    command = f"$ logpose {' '.join(map(str, words))}"
    lines = wrap(command, 78, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    say(("\n" + " \\\n".join(lines)).replace("\0", " "))


def _draw(folder: Path, count: int, seed: int) -> None:
    total = count * len(CREWS)
    with bar("drawing", "flags", total, ends=False) as progress:
        draw_flags(folder, count, seed, lambda done, total: progress.update(done), available_cpus())
    say(f"  {plural(total, 'flag')} in {folder}")


def _is_built(dataset: Path) -> bool:
    """Return whether the dataset is complete and has as many flags as are drawn now."""
    try:
        data = Dataset.open(dataset)
    except DatasetError:
        return False
    expected = (TRAIN[0] * len(CREWS), VAL[0] * len(CREWS), (SIZE, SIZE))
    return (data.train.rows, data.val.rows, data.size) == expected


def _show(out: Path) -> float:
    """Print the first lines of the table, and return its accuracy: each flag lies in a folder named after its crew."""
    say(f"  {out}:")
    with out.open(encoding="utf-8") as file:
        for line in islice(file, 5):
            say(f"    {line.rstrip()}")
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    correct = sum(row["label"] == Path(row["filename"]).parent.name for row in rows)
    say(f"    … {correct} of {len(rows)} correct: each flag lies in a folder named after its crew")
    return correct / len(rows)
