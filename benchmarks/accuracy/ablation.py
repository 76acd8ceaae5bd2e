"""What each part of a recipe gives: train without it, several seeds each, beside the recipe as it is.

    python -m benchmarks.accuracy.ablation DATASET.zarr RUNS --recipe NAME [--epochs N]
        [--seeds N] [--only WORDS] [--set ...]

Every training is a `logpose train` into a folder of RUNS; run again, it goes on where it stopped. Ends with a table:
the last epoch's accuracy and the best epoch's with the recipe's views, the means over the seeds, and what is lost
without each part.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from jobs.cli import main as logpose

WITHOUT = {
    "cifar-speedrun": {
        "as it is": (),
        "first layer learned, not whitening": ("model.whiten=false",),
        "random start, not the identity": ("model.identity=false",),
        "shifts learn as fast as weights": ("model.shift_lr_factor=1",),
        "no lookahead": ("lookahead.every=0",),
        "flips at random, not by turns": ("augment.flip=true",),
        "no flips": ("augment.flip=false",),
        "no moves by two pixels": ("augment.shift=0",),
        "no label smoothing": ("loss.label_smoothing=0",),
    },
    "best": {
        "as it is": (),
        "none of all this but flips": (
            "mix.kind=none", "augment.brightness=0", "augment.contrast=0", "augment.saturation=0",
            "augment.crop_scale=1", "ema.horizon=0", "optimizer.weight_decay=0.05",
        ),
        "no mixup, no cutmix": ("mix.kind=none",),
        "no change of colours": ("augment.brightness=0", "augment.contrast=0", "augment.saturation=0"),
        "no random crops": ("augment.crop_scale=1",),
        "no flips": ("augment.flip=false",),
        "little weight decay": ("optimizer.weight_decay=0.05",),
        "no average of weights": ("ema.horizon=0",),
        "label smoothing as well": ("loss.label_smoothing=0.1",),
    },
}


def outcome(run_dir: Path, arguments: list[str]) -> tuple[float, float]:
    """Train, or go on, or find it done: the last epoch's accuracy, and the best epoch's with views."""
    code = logpose(["train", *arguments, str(run_dir), "--resume"])
    if code:
        raise SystemExit(code)
    with (run_dir / "metrics.csv").open(newline="") as file:
        last = float(list(csv.DictReader(file))[-1]["val_accuracy"])
    seen = json.loads((run_dir / "summary.json").read_text())["accuracy_with_views"]
    return last, last if seen is None else seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--recipe", choices=WITHOUT, default="cifar-speedrun")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="those parts alone whose line has these words")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    found: dict[str, np.ndarray] = {}  # (seeds, 2)
    for seed in range(arguments.seeds):  # outside, so that there is a whole table early
        for name, sets in WITHOUT[arguments.recipe].items():
            if arguments.only not in name and sets:
                continue
            given = ["--recipe", arguments.recipe, "--seed", str(seed)]
            given += ["--epochs", str(arguments.epochs)] if arguments.epochs else []
            for each in (*arguments.set, *sets):
                given += ["--set", each]
            changes = [*arguments.set, *(sets or ["as-it-is"])]
            words = [arguments.recipe, str(arguments.epochs or "all"), *changes, str(seed)]
            run_dir = arguments.runs / "-".join(words).replace("=", "-")
            row = np.array(outcome(run_dir, [arguments.dataset, *given]))  # (2,)
            found[name] = np.vstack([found.get(name, np.empty((0, 2))), row])
    whole = found["as it is"].mean(axis=0)  # (2,)
    print(f"\n{'':36} {'last epoch':>10}  with views  {'lost':>6}  each seed, with views")
    for name, rows in found.items():
        mean = rows.mean(axis=0)  # (2,)
        each_seed = " ".join(f"{value:.2%}" for value in rows[:, 1])
        print(f"{name:36} {mean[0]:10.2%}  {mean[1]:10.2%}  {100 * (whole - mean)[1]:6.2f}  {each_seed}")


if __name__ == "__main__":
    main()
