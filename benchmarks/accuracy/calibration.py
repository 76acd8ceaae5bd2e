"""How far the probabilities of trained networks are off, each alone and all together, beside what chance alone does.

    python -m benchmarks.accuracy.calibration RUN_DIR ...

The calibration error of few images is never zero. So the last column has what a network would show that is as sure of
each image as ours and right exactly as often as it says: labels drawn by its own probabilities, 500 times.
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
    """The errors for outputs and scaled outputs (N, C) and classes (N,)."""
    limits, last = softmax(scaled).cumsum(axis=1), scaled.shape[1] - 1  # (N, C), ()
    places = np.random.default_rng(0).random((DRAWS, len(limits), 1))  # (DRAWS, N, 1), 0 to 1
    drawn = [np.minimum((limits < each).sum(axis=1), last) for each in places]  # (N,) each
    chance = np.array([reliability(scaled, each).error for each in drawn])  # (DRAWS,)
    low, high = np.percentile(chance, [5, 95])
    before, after = reliability(outputs, labels).error, reliability(scaled, labels).error
    words = f"{len(labels):9,} {before:9.1%} {after:9.1%}   {chance.mean():.1%} ({low:.1%} to {high:.1%})"
    return f"{name:24} {words}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    everything = []
    backend = pick_backend("cpu")
    for run_dir in runs:
        run, state = load_run(run_dir)
        val = open_dataset(run, state, None).val
        evaluation = evaluate_model(Predictor(run.folder.model, backend), val, 1).evaluation
        outputs, labels = evaluation.outputs, evaluation.labels
        scaled = outputs / temperatures_by_halves(outputs, labels)[:, None]  # (N, C)
        everything.append((outputs, labels, scaled))
    print(f"\n{'':24} {'images':>9} {'unscaled':>9} {'scaled':>9}   by chance alone (nine in ten)")
    for run_dir, found in zip(runs, everything, strict=True):
        print(line(run_dir.name, *found))
    if len(runs) > 1:
        print(line("all together", *(np.concatenate(parts) for parts in zip(*everything, strict=True))))


if __name__ == "__main__":
    main()
