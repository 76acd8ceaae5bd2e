"""Train with 1 to 4 threads, without ranks and on 1 to 4 of them, and compare the bits of all results.

    python -m tests.jobs.training.ranks.matrix DATASET [--epochs N] [--models NAME…]

Prints a table for each model: the first digits of the SHA-256 of the final weights, optimizer and metrics. The exit
code is 1 unless each table holds one number. With 2,000 images of 32 pixels all models take half an hour on two CPUs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.jobs.training.ranks.digests import digest

DIVIDED = ("--batch-size", "96", "--set", "train.micro_batch=16", "--device", "cpu")
MODELS = {
    "resnet9": ("--model", "resnet9", "--set", "model.width=16"),
    "airbench94": ("--recipe", "cifar-speedrun", "--set", "model.width=8"),
    "seed": ("--model", "seed", "--set", "optimizer.name=sgd", "--set", "train.clip=1"),
}
THREADS, RANKS = (1, 2, 3, 4), (0, 1, 2, 3, 4)  # 0: without ranks


def train(dataset: Path, run_dir: Path, model: str, epochs: int, threads: int, ranks: int) -> str:
    """Train in a new process; return the digest."""
    options = (*MODELS[model], *DIVIDED, "--epochs", epochs, "--threads", threads)
    options += ("--ranks", ranks) if ranks else ()
    command = [sys.executable, "-W", "error", "-m", "logpose", "train", dataset, run_dir, *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return digest(run_dir)


def print_matrix(dataset: Path, model: str, epochs: int) -> int:
    """Print the table of a model; return the number of different digests in it."""
    began, found = time.monotonic(), set[str]()
    print(f"{model}: threads (down), and ranks (across)")
    print(" " * 8 + "".join(f"{ranks or 'without':>10}" for ranks in RANKS), flush=True)
    for threads in THREADS:
        print(f"{threads:8}", end="", flush=True)
        for ranks in RANKS:
            with TemporaryDirectory() as folder:
                number = train(dataset, Path(folder) / "run", model, epochs, threads, ranks)
            found.add(number)
            print(f"{number[:8]:>10}", end="", flush=True)
        print()
    print(f"different digests: {len(found)}, of {len(THREADS) * len(RANKS)} trainings")
    print(f"in {time.monotonic() - began:.0f} s: {', '.join(sorted(found))}\n", flush=True)
    return len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    counts = [print_matrix(options.dataset, model, options.epochs) for model in options.models]
    return int(any(count != 1 for count in counts))


if __name__ == "__main__":
    sys.exit(main())
