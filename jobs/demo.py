"""All jobs in a row on drawn pirate flags: something to watch, and a check that everything works."""

import csv
from itertools import islice
from pathlib import Path

from jobs.classification.classify import classify
from jobs.console.progress import bar, plural
from jobs.datasets.build import build
from jobs.errors import JobError
from jobs.flags import CREWS, draw_flags
from jobs.options import ReportOptions, TrainOptions
from jobs.report import report
from jobs.training.train import train
from logpose.common.cpus import available_cpus
from pipeline.dataset.store import Dataset
from pipeline.errors import DatasetError

# What is drawn: flags of each crew, and the seed they are drawn from. No flag is in two of them.
TRAIN, VAL, NEW = (120, 1), (30, 2), (2, 3)
SIZE = 64  # pixels
# Small enough for two cores to finish in two or three minutes. The flags already vary in pose, colour and cover, so
# little is left for augmentation to do.
RECIPE = (
    "model.name=resnet9",
    "model.width=16",
    "train.epochs=14",
    "train.batch_size=32",
    "optimizer.lr=0.01",
    "schedule.warmup=0.2",
    "augment.crop_scale=1.0",
    "augment.shift=0.0625",
)


def demo(folder: Path) -> int:
    """Draw, build, train and classify in `folder`; what is done already is not done again."""
    flags, dataset, run_dir = folder / "flags", folder / "flags.zarr", folder / "run"
    new, out = folder / "new", folder / "new.csv"

    print(f"Flags of {len(CREWS)} pirate crews: some to learn from, others to validate, more to recognise")
    for place, (count, seed) in ((flags / "train", TRAIN), (flags / "val", VAL), (new, NEW)):
        _draw(place, count, seed)

    _announce("build", flags, dataset, f"--size {SIZE}")
    if _is_built(dataset):
        print(f"{dataset} is there already")
    else:
        build(flags, dataset, size=str(SIZE), overwrite=True)

    _announce("train", dataset, run_dir, "--resume", *(f"--set {value}" for value in RECIPE))
    try:
        train(dataset, run_dir, TrainOptions(set=RECIPE, resume=True))
    except JobError as error:
        raise JobError(f"{error} (or remove {folder} and run the demo again)") from error

    model = run_dir / "model.safetensors"
    _announce("classify", new, model, out, "--topk 2 --overwrite")
    classify(new, model, out, topk=2, overwrite=True)

    _announce("report", run_dir)
    report(run_dir, ReportOptions())

    print("\nWhere to look")
    _show(out)
    for name, what in (("curves.png", "how it learned"), ("report.html", "how good it is, and where it is wrong")):
        print(f"  {run_dir / name}: {what}")
    return 0


def _announce(*words: object) -> None:
    """The command that does the same."""
    print(f"\n$ logpose {' '.join(map(str, words))}", flush=True)


def _draw(folder: Path, count: int, seed: int) -> None:
    workers = available_cpus()
    with bar("drawing", "flags", count * len(CREWS), ends=False) as progress:
        draw_flags(folder, count, seed, lambda done, total: progress.update(done), workers)
    print(f"  {plural(count * len(CREWS), 'flag')} in {folder}", flush=True)


def _is_built(dataset: Path) -> bool:
    """Whether it is whole, and of as many flags as are drawn now."""
    try:
        data = Dataset.open(dataset)
    except DatasetError:
        return False
    wanted = (TRAIN[0] * len(CREWS), VAL[0] * len(CREWS), (SIZE, SIZE))
    return (data.train.rows, data.val.rows, data.size) == wanted


def _show(out: Path) -> None:
    """The CSV's first lines, and how many of its labels are the names of the folders the flags lie in."""
    print(f"  {out}:")
    with out.open(encoding="utf-8") as file:
        for line in islice(file, 5):
            print(f"    {line.rstrip()}")
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == Path(row["filename"]).parent.name for row in rows)
    print(f"    … {right} of {len(rows)} right: each flag lies in a folder named after its crew")
