"""Kill trainings at random moments, resume them, and check that nothing is lost.

    python -m tests.jobs.training.kill_trainings DATASET.zarr [--kills 50] [--epochs 3] [--batch-size 8]
                                        [--checkpoint-steps 5] [--seed 0]

Each training is killed with SIGKILL one to four times, at any moment from the start of its process to its end, and
resumed, each time with other --workers and another --ram-budget. The last and the best model, the columns of
metrics.csv without times, the drawings and the names of all files must equal those of an uninterrupted training. A kill
may cost as many steps as there are between two checkpoints. Prints a line per training, and one JSON object at the
end.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from safetensors.numpy import load_file

from cnn.checkpoint import load_checkpoint
from pipeline.dataset.store import Dataset
from pipeline.loader import epoch_order
from pipeline.loader.stream import MAX_WINDOWS, BatchStream
from tests.jobs.killing import Aim, LoggedRun

MODEL = ("--model", "plain", "--set", "model.width=4")  # trains in seconds
WINDOW_BYTES = 2 * 2**20  # so that a small dataset has several windows
MAX_WORKERS = 4
MAX_KILLS = 4  # of one training

MARKS = {
    "s": ("jobs.training.run_folder:RunFolder", "save_last"),
    "b": ("jobs.training.run_folder:RunFolder", "save_best"),
    "m": ("jobs.training.artifacts", "write_metrics"),
    "d": ("jobs.training.artifacts:Artifacts", "draw"),
    "v": ("cnn.training.trainer:Trainer", "evaluate"),
    "t": ("cnn.training.trainer:Trainer", "start_micro_batches"),
}
# Phase by mark, the innermost first.
PHASES = {
    "s": "saving the last", "b": "saving the best", "m": "writing metrics.csv", "d": "drawing", "v": "validating",
    "t": "in a step",
}  # fmt: skip


@dataclass
class Outcome:
    """Result of one training.

    hits    phases in which it was killed
    lost    steps that were repeated, by kill
    device  the reported device of all attempts, which includes the number of threads
    wrong   what differs from an uninterrupted training
    """

    hits: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    device: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


class Times(NamedTuple):
    """An uninterrupted training: seconds to the first step, seconds from there to the end, number of steps."""

    start: float
    work: float
    steps: int

    def aim(self, left: int, draw: random.Random) -> Aim:
        """A random moment of a training of `left` steps: in its start, near a step, or anywhere after the start."""
        aims = (
            Aim("T", 0, draw.uniform(0, self.start)),
            Aim("T", draw.randint(1, max(1, left)), draw.uniform(0, 2 * self.work / self.steps)),
            Aim("T", 1, draw.uniform(0, self.work)),
        )
        return draw.choices(aims, (1, 2, 2))[0]


@dataclass(frozen=True)
class Trainings:
    """Starts trainings with the same dataset and recipe."""

    dataset: Path
    epochs: int
    batch_size: int
    checkpoint_steps: int
    device: str = "cpu"

    def start(self, run_dir: Path, *options: object) -> LoggedRun:
        """Start or resume; the log is written next to `run_dir`."""
        recipe = (*MODEL, "--device", self.device, "--epochs", self.epochs, "--batch-size", self.batch_size)
        often = ("--checkpoint-steps", self.checkpoint_steps, "--resume")
        arguments = ("train", self.dataset, run_dir, *recipe, *often, *options)
        settings = {"pipeline.loader.epoch_order:WINDOW_BYTES": WINDOW_BYTES}
        return LoggedRun(run_dir.parent / "notes", MARKS, *arguments, settings=settings)

    def budgets(self) -> list[int]:
        """RAM budgets for one window of images in memory, for two, …, for all; enough for any number of workers."""
        data = Dataset.open(self.dataset)
        val = BatchStream(data.val, self.batch_size, seed=0, shuffle=False, workers=MAX_WORKERS)
        with patch.object(epoch_order, "WINDOW_BYTES", WINDOW_BYTES):
            train = BatchStream(data.train, self.batch_size, seed=0, workers=MAX_WORKERS)
        window = (train.ram_bytes - train.min_bytes) // max(1, train.buffered_windows - 1)
        windows = [val.ram_bytes + train.min_bytes + more * window for more in range(MAX_WINDOWS)]
        return [*windows, 2**40]

    def kill_and_finish(self, run_dir: Path, kills: int, times: Times, draw: random.Random) -> Outcome:
        """Train into `run_dir`, killing the first runs."""
        outcome, budgets = Outcome(), self.budgets()

        def attempt() -> LoggedRun:
            workers, budget = draw.randint(1, MAX_WORKERS), draw.choice(budgets)
            return self.start(run_dir, "--workers", workers, "--ram-budget", budget)

        for _ in range(kills):
            before = saved_step(run_dir)
            run = attempt()
            hit = run.kill(times.aim(times.steps - before, draw))
            outcome.device |= described_device(run)
            if not hit:
                break
            outcome.hits.append(phase(run))
            outcome.lost.append(before + run.count("t") - saved_step(run_dir))
        run = attempt()  # also if the training was finished
        run.finish()
        outcome.device |= described_device(run)
        return outcome


def phase(run: LoggedRun) -> str:
    mark = run.within(PHASES)
    if mark:
        return PHASES[mark]
    return "between these" if run.count("T") else "starting"


def described_device(run: LoggedRun) -> set[str]:
    return {line for line in run.output.splitlines() if line.startswith("device ")}


def saved_step(run_dir: Path) -> int:
    """The step of the last checkpoint; 0 without one."""
    last = run_dir / "last.safetensors"
    return int(load_checkpoint(last).progress["step"]) if last.exists() else 0


def results(run_dir: Path) -> dict[str, str]:
    """The results that must depend neither on the clock nor on kills, by file name."""
    found = {path.name: "present" for path in run_dir.iterdir()}
    for name in ("last.safetensors", "model.safetensors"):
        digest = hashlib.sha256()
        for tensor, values in sorted(load_file(run_dir / name).items()):
            digest.update(f"{tensor} {values.dtype} {values.shape}".encode() + values.tobytes())
        found[name] = digest.hexdigest()
    for name in {"curves.png", "confusion.png"} & found.keys():
        found[name] = hashlib.sha256((run_dir / name).read_bytes()).hexdigest()
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [{name: row[name] for name in row if "second" not in name} for row in csv.DictReader(file)]
    return found | {"metrics.csv": json.dumps(rows)}


def kill_trainings(
    trainings: Trainings, kills: int, seed: int, folder: Path, max_kills: int = MAX_KILLS
) -> tuple[list[Outcome], int]:
    """Train until `kills` processes were killed; return the outcomes, and the steps of an uninterrupted training."""
    run = trainings.start(folder / "uninterrupted" / "run")
    started = run.wait_for("T")
    times = Times(started, run.finish() - started, run.count("t"))
    device = described_device(run)
    expected = results(folder / "uninterrupted" / "run")
    draw = random.Random(seed)
    done: list[Outcome] = []
    while (hits := sum(len(outcome.hits) for outcome in done)) < kills:
        attempt_folder = folder / str(len(done))
        attempts = min(draw.randint(1, max_kills), kills - hits)
        outcome = trainings.kill_and_finish(attempt_folder / "run", attempts, times, draw)
        found = results(attempt_folder / "run")
        names = sorted(expected.keys() | found.keys())
        outcome.wrong += [name for name in names if found.get(name) != expected.get(name)]
        if outcome.device != device:
            outcome.wrong.append(f"device {outcome.device}")
        if not all(0 <= lost <= trainings.checkpoint_steps for lost in outcome.lost):
            outcome.wrong.append("lost steps")
        shutil.rmtree(attempt_folder)
        done.append(outcome)
        print(f"{outcome.hits}: steps repeated {outcome.lost}, wrong: {outcome.wrong}", flush=True)
    return done, times.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, metavar="DATASET.zarr")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--checkpoint-steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trainings = Trainings(options.dataset, options.epochs, options.batch_size, options.checkpoint_steps, options.device)
    with tempfile.TemporaryDirectory() as folder:
        trainings.start(Path(folder) / "first" / "run").finish()  # compiles the kernels
        done, steps = kill_trainings(trainings, options.kills, options.seed, Path(folder))
    lost = [steps for outcome in done for steps in outcome.lost]
    wrong = Counter(what for outcome in done for what in outcome.wrong)
    summary = {
        "kills": len(lost),
        "trainings": len(done),
        "as uninterrupted": sum(not outcome.wrong for outcome in done),
        "not as uninterrupted": dict(wrong),
        "kills by phase": dict(Counter(hit for outcome in done for hit in outcome.hits).most_common()),
        "steps": steps,
        "steps between checkpoints": options.checkpoint_steps,
        "steps repeated per kill, mean": round(sum(lost) / len(lost), 2),
        "steps repeated per kill, max": max(lost),
    }
    print(json.dumps(summary))
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
