"""Calibration error of trained networks, before and after temperature scaling, against that of perfect calibration.

    python -m benchmarks.accuracy.calibration RUN_DIR ...

On a finite sample even a perfectly calibrated network has an error above zero. The last column estimates it: labels are
drawn from the network's own probabilities, 500 times. Reports each run, and all together.
"""

import argparse
from pathlib import Path

import numpy as np

from cnn.backends import pick_backend
from cnn.evaluation.calibration import reliability, softmax, temperatures_by_halves
from cnn.inference.predictor import Predictor
from jobs.report.evaluation import evaluate_model
from jobs.report.load_run import load_run, open_dataset

DRAWS = 500


def line(name: str, outputs: np.ndarray, labels: np.ndarray, scaled: np.ndarray) -> str:
    """A row of the table: the errors of outputs and scaled outputs (N, C) for class indices (N,)."""
    limits, last = softmax(scaled).cumsum(axis=1), scaled.shape[1] - 1  # (N, C), ()
    places = np.random.default_rng(0).random((DRAWS, len(limits), 1))  # (DRAWS, N, 1), 0 to 1
    drawn = [np.minimum((limits < each).sum(axis=1), last) for each in places]  # (N,) each
    chance = np.array([reliability(scaled, each).error for each in drawn])  # (DRAWS,)
    low, high = np.percentile(chance, [5, 95])
    before, after = reliability(outputs, labels).error, reliability(scaled, labels).error
    words = f"{len(labels):9,} {before:9.1%} {after:9.1%}   {chance.mean():.1%} ({low:.1%} to {high:.1%})"
    return f"{name:24} {words}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    everything = []
    backend = pick_backend("cpu")
    for run_dir in runs:
        run = load_run(run_dir)
        val = open_dataset(run, None).val
        evaluation = evaluate_model(Predictor(run.folder.model, backend), val, 1).evaluation
        outputs, labels = evaluation.outputs, evaluation.labels
        scaled = outputs / temperatures_by_halves(outputs, labels)[:, None]  # (N, C)
        everything.append((outputs, labels, scaled))
    print(f"\n{'':24} {'images':>9} {'unscaled':>9} {'scaled':>9}   perfectly calibrated (90 % interval)")
    for run_dir, found in zip(runs, everything, strict=True):
        print(line(run_dir.name, *found))
    if len(runs) > 1:
        print(line("all together", *(np.concatenate(parts) for parts in zip(*everything, strict=True))))


if __name__ == "__main__":
    main()
