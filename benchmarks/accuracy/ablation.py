"""Ablation study: accuracy of a recipe without each of its components, over several seeds.

    python -m benchmarks.accuracy.ablation DATASET.zarr RUNS --recipe NAME [--epochs N]
        [--seeds N] [--only WORDS] [--set ...]

Each run is a `logpose train --resume` into a folder of RUNS, so that the benchmark resumes when started again. Ends
with a table of means over the seeds: the last epoch's accuracy, the best epoch's with the recipe's test-time
augmentation, and the drop of accuracy without each component.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from jobs.cli import main as logpose

WITHOUT = {
    "cifar-speedrun": {
        "full recipe": (),
        "learned first layer, not whitening": ("model.whiten=false",),
        "random, not identity initialisation": ("model.identity=false",),
        "same learning rate for shifts": ("model.shift_lr_factor=1",),
        "no lookahead": ("lookahead.every=0",),
        "random, not alternating flips": ("augment.flip=true",),
        "no flips": ("augment.flip=false",),
        "no random translation": ("augment.shift=0",),
        "no label smoothing": ("loss.label_smoothing=0",),
    },
    "best": {
        "full recipe": (),
        "no regularisation but flips": (
            "mix.kind=none", "augment.brightness=0", "augment.contrast=0", "augment.saturation=0",
            "augment.crop_scale=1", "ema.horizon=0", "optimizer.weight_decay=0.05",
        ),
        "no mixup, no cutmix": ("mix.kind=none",),
        "no colour jitter": ("augment.brightness=0", "augment.contrast=0", "augment.saturation=0"),
        "no random crops": ("augment.crop_scale=1",),
        "no flips": ("augment.flip=false",),
        "low weight decay": ("optimizer.weight_decay=0.05",),
        "no weight averaging": ("ema.horizon=0",),
        "label smoothing as well": ("loss.label_smoothing=0.1",),
    },
}


def outcome(run_dir: Path, arguments: list[str]) -> tuple[float, float]:
    """Train or resume a run; returns the last epoch's accuracy, and the best epoch's with test-time augmentation."""
    code = logpose(["train", *arguments, str(run_dir), "--resume"])
    if code:
        raise SystemExit(code)
    with (run_dir / "metrics.csv").open(newline="") as file:
        last = float(list(csv.DictReader(file))[-1]["val_accuracy"])
    with_views = json.loads((run_dir / "summary.json").read_text())["accuracy_with_views"]
    return last, last if with_views is None else with_views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--recipe", choices=WITHOUT, default="cifar-speedrun")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="only the components whose name contains this text")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    found: dict[str, np.ndarray] = {}  # (seeds, 2)
    for seed in range(arguments.seeds):  # the outer loop: one seed of every row first
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
    full = found["full recipe"].mean(axis=0)  # (2,)
    print(f"\n{'':36} {'last epoch':>10}  with views  {'drop':>6}  each seed, with views")
    for name, rows in found.items():
        mean = rows.mean(axis=0)  # (2,)
        each_seed = " ".join(f"{value:.2%}" for value in rows[:, 1])
        print(f"{name:36} {mean[0]:10.2%}  {mean[1]:10.2%}  {100 * (full - mean)[1]:6.2f}  {each_seed}")


if __name__ == "__main__":
    main()
