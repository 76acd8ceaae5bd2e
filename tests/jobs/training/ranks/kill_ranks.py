"""Kill the ranks of trainings, and whole trainings on ranks, at random moments: the result must not change by a bit.

    python -m tests.jobs.training.ranks.kill_ranks [--trainings 50] [--kills 50] [--seed 0]

An undisturbed training in one process and thread gives the expected SHA-256 of all results: tensors, metrics without
times, drawings.

--trainings  elastic trainings with --scheduler. At random moments a worker is killed with SIGKILL or another one
             starts, between 1 and 4 in all; now and then all are killed and new ones come; now and then the training
             itself is killed and resumed on the same workers.
--kills      kills of everything: a training with --ranks is killed with all its processes, or its main process only.
             No process may be left. It is resumed with another number of ranks (0: without) and threads, and killed
             again, until it ends.

Prints a line per training, and one JSON object at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jobs.cli import main as logpose
from tests.jobs.conftest import draw_classes
from tests.jobs.killing import Aim, LoggedRun
from tests.jobs.training.kill_trainings import results, saved_step

RECIPE = (
    *("--model", "plain", "--set", "model.width=4", "--device", "cpu", "--epochs", 2),
    *("--batch-size", 24, "--set", "train.micro_batch=4", "--set", "train.views=mirror"),
    *("--set", "mix.kind=either", "--set", "mix.share=0.5", "--set", "ema.horizon=0.2", "--set", "lookahead.every=5"),
)
MICRO_BATCHES = 6  # of a batch
CHECKPOINT_STEPS = 5
MAX_WORKERS = 4
MAX_EVENTS = 8  # of an elastic training
MAX_KILLS = 3  # of everything, per training
PATIENCE = 4.0  # seconds that an event waits for its phase
LEFT_SECONDS = 10.0  # until no process may be left
HANGS = 120.0  # seconds after which a training is taken to hang

# The engine looks for results without a pause: more happens in a short training.
OFTEN = {"jobs.training.ranks.engine:NEWS_SECONDS": 0}

MARKS = {
    "s": ("jobs.training.run_folder:RunFolder", "save_last"),
    "w": ("jobs.training.ranks.generations:Generations", "_available"),
    "g": ("jobs.training.ranks.generations:Generations", "_prepare"),
    "v": ("jobs.training.ranks.engine:RankEngine", "validate"),
    "e": ("jobs.training.ranks.engine:RankEngine", "evaluate_saved"),
    "t": ("jobs.training.run_folder:TrainingState", "add_batch"),
}
# Phase by mark, the innermost first.
PHASES = {
    "s": "saving the last", "w": "waiting for workers", "g": "forming a generation", "v": "validating",
    "e": "evaluating the best",
}  # fmt: skip

# A worker that has imported everything, and connects to the scheduler once it gets a line.
SPARE = """
import sys
import jobs.training.ranks.worker
from distributed.cli.dask_worker import main

sys.stdin.readline()
main()
"""


@dataclass
class Outcome:
    """Result of one training.

    events   what was done to it, and in which phase
    seconds  that it took
    wrong    what differs from an undisturbed training
    """

    events: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class HangError(Exception):
    """A training takes too long."""


def digest(run_dir: Path) -> str:
    """SHA-256 of all results that must depend neither on the clock nor on who computed."""
    found = results(run_dir)
    found.pop("ranks.csv", None)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def phase(run: LoggedRun) -> str:
    mark = run.within(PHASES)
    if mark:
        return PHASES[mark]
    return "in the steps" if run.count("t") else "starting"


def draw_dataset(folder: Path, per_class: int) -> Path:
    """Make a dataset of drawn images."""
    data = folder / "colours.zarr"
    images = draw_classes(folder / "colours", per_class)
    assert logpose(["build", "-q", str(images), str(data), "--size", "16", "--val", "0.2"]) == 0
    return data


@dataclass(frozen=True)
class Trainings:
    """Starts trainings with the same dataset and recipe."""

    dataset: Path
    recipe: tuple[object, ...] = RECIPE

    def start(self, run_dir: Path, *options: object) -> LoggedRun:
        """Start or resume, in a process group of its own; the log is written next to `run_dir`."""
        often = ("--checkpoint-steps", CHECKPOINT_STEPS, "--resume")
        arguments = ("train", self.dataset, run_dir, *self.recipe, *often, *options)
        return LoggedRun(run_dir.parent / "notes", MARKS, *arguments, settings=OFTEN, group=True)

    def undisturbed(self, folder: Path) -> str:
        """Train in one process and thread; return the digest."""
        self.start(folder / "run", "--threads", 1).finish()
        return digest(folder / "run")


class Cluster:
    """A scheduler and its workers, without nannies: a killed worker is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder, file = folder, folder / "scheduler.json"
        folder.mkdir()
        self._errors = (folder / "errors").open("wb")
        command = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self._scheduler = subprocess.Popen(
            [*command, "--scheduler-file", str(file)], stdout=self._errors, stderr=subprocess.STDOUT
        )
        while not (file.exists() and file.read_text()):
            assert self._scheduler.poll() is None
            time.sleep(0.01)
        self.address: str = json.loads(file.read_text())["address"]
        self.workers: list[subprocess.Popen[bytes]] = []
        self._spares: list[subprocess.Popen[bytes]] = []

    def join(self) -> None:
        """Have another worker connect."""
        if not self._spares:
            self.prepare(1)
        worker = self._spares.pop(0)
        assert worker.stdin
        worker.stdin.write(b"\n")
        worker.stdin.close()
        self.workers.append(worker)

    def kill(self, number: int) -> None:
        worker = self.workers.pop(number)
        worker.kill()
        worker.wait()

    def prepare(self, spares: int) -> None:
        """Start processes that are quick to join."""
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self._folder))
        command = (sys.executable, "-c", SPARE, self.address, *options)
        while len(self._spares) < spares:
            self._spares.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._errors, stderr=subprocess.STDOUT)
            )

    def close(self) -> None:
        for process in (*self.workers, *self._spares, self._scheduler):
            process.kill()
            process.communicate()
        self._errors.close()


class Elastic:
    """Trainings on a cluster whose workers come and go."""

    def __init__(self, trainings: Trainings, cluster: Cluster, draw: random.Random) -> None:
        self._trainings, self._cluster, self._draw = trainings, cluster, draw

    def train(self, run_dir: Path, events: int) -> Outcome:
        """Train into `run_dir`, while `events` things happen."""
        outcome, began, cluster = Outcome(), time.monotonic(), self._cluster
        while len(cluster.workers) < self._draw.randint(1, MAX_WORKERS):
            cluster.join()
        run = self._start(run_dir)
        run.wait_for("w")
        while len(outcome.events) < events and run.process.poll() is None:
            self._wait(run)
            if run.process.poll() is None:
                run = self._disturb(run, run_dir, outcome)
            cluster.prepare(2)
        finish(run, began)
        outcome.seconds = time.monotonic() - began
        if any(worker.poll() is not None for worker in cluster.workers):
            outcome.wrong.append("a worker ended")
        return outcome

    def _start(self, run_dir: Path) -> LoggedRun:
        return self._trainings.start(run_dir, "--scheduler", self._cluster.address)

    def _wait(self, run: LoggedRun) -> None:
        """Wait for a random moment: some steps later, in the next validation, or while a generation is formed."""
        if self._draw.random() < 0.8:
            run.wait_for("t")
        mark, more, delay = self._draw.choices(
            (("t", self._draw.randint(1, 20), 0.05), ("V", 1, 0.3), ("G", 1, 1.0), ("E", 1, 0.2)), (5, 3, 3, 1)
        )[0]
        wanted, until = run.count(mark) + more, time.monotonic() + PATIENCE
        while run.count(mark) < wanted and run.process.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(self._draw.uniform(0, delay))

    def _disturb(self, run: LoggedRun, run_dir: Path, outcome: Outcome) -> LoggedRun:
        """Do something, and return the training, a new one if it was killed."""
        cluster, draw, count = self._cluster, self._draw, len(self._cluster.workers)
        possible = {"kill": 5 * (count > 1), "join": 4 * (count < MAX_WORKERS), "all lost": 2, "training killed": 1}
        what = draw.choices(list(possible), list(possible.values()))[0]
        outcome.events.append((what, phase(run)))
        if what == "kill":
            cluster.kill(draw.randrange(count))
        elif what == "join":
            cluster.join()
        elif what == "all lost":
            while cluster.workers:
                cluster.kill(0)
            time.sleep(draw.choice((0, draw.uniform(0, 1), 4)))
            for _ in range(draw.randint(1, 3)):
                cluster.join()
        else:
            run.kill(Aim("t", 0, 0))
            return self._start(run_dir)
        return run


def finish(run: LoggedRun, began: float) -> None:
    """Wait for the end. Raises HangError."""
    while run.process.poll() is None:
        if time.monotonic() - began > HANGS:
            run.process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            raise HangError(run.output)
        time.sleep(0.01)
    assert run.process.returncode == 0, run.output


def kill_everything(trainings: Trainings, run_dir: Path, kills: int, draw: random.Random) -> Outcome:
    """Train into `run_dir`, killing the first runs with all their processes."""
    outcome, began = Outcome(), time.monotonic()

    def attempt() -> LoggedRun:
        ranks, threads = draw.randint(0, MAX_WORKERS), draw.randint(1, 3)
        return trainings.start(run_dir, *(("--ranks", ranks) if ranks else ()), "--threads", threads)

    for _ in range(kills):
        before, run = saved_step(run_dir), attempt()
        aims = (
            Aim("t", 0, draw.uniform(0, 8)),
            Aim("t", draw.randint(1, 60), draw.uniform(0, 0.1)),
            Aim("V", 1, draw.uniform(0, 0.3)),
            Aim("G", 1, draw.uniform(0, 2)),
        )
        aim = draw.choices(aims, (1, 5, 2, 1))[0]
        run.wait_for(aim.mark, aim.times)
        time.sleep(aim.seconds)
        if run.process.poll() is not None:
            break
        where = phase(run)
        only = draw.random() < 0.3
        if only:
            run.process.kill()
        else:
            os.killpg(run.process.pid, signal.SIGKILL)
        if run.process.wait() == 0:
            break
        outcome.events.append(("main process" if only else "all processes", where))
        left = processes_left(run.process.pid)
        if left:
            outcome.wrong.append(f"left: {left}")
        if saved_step(run_dir) < before:
            outcome.wrong.append("an older checkpoint")
    finish(attempt(), time.monotonic())
    outcome.seconds = time.monotonic() - began
    return outcome


def processes_left(group: int) -> list[str]:
    """Wait until no process of the group is left; return those that are left after LEFT_SECONDS."""
    until = time.monotonic() + LEFT_SECONDS
    while (left := _of_group(group)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _of_group(group: int) -> list[str]:
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [" ".join(row[2:]) for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


def check(outcome: Outcome, run_dir: Path, expected: str, label: str) -> Outcome:
    """Compare the results, remove them, and print a line."""
    if digest(run_dir) != expected:
        outcome.wrong.append("another SHA-256")
    shutil.rmtree(run_dir.parent)
    print(f"{label}: {outcome.seconds:.1f} s, {outcome.events}, wrong: {outcome.wrong}", flush=True)
    return outcome


def lose_ranks(trainings: Trainings, count: int, seed: int, folder: Path, expected: str, events: int) -> list[Outcome]:
    """Elastic trainings."""
    draw, done = random.Random(seed), list[Outcome]()
    cluster = Cluster(folder / "cluster")
    try:
        cluster.prepare(4)
        elastic = Elastic(trainings, cluster, draw)
        for number in range(count):
            run_dir = folder / f"elastic {number}" / "run"
            outcome = elastic.train(run_dir, draw.randint(3, events))
            done.append(check(outcome, run_dir, expected, f"elastic {number}"))
    finally:
        cluster.close()
    return done


def lose_everything(
    trainings: Trainings, kills: int, seed: int, folder: Path, expected: str, max_kills: int = MAX_KILLS
) -> list[Outcome]:
    """Trainings with `kills` kills of everything in all."""
    draw, done = random.Random(seed), list[Outcome]()
    while (hits := sum(len(outcome.events) for outcome in done)) < kills:
        run_dir = folder / f"killed {len(done)}" / "run"
        outcome = kill_everything(trainings, run_dir, min(draw.randint(1, max_kills), kills - hits), draw)
        done.append(check(outcome, run_dir, expected, f"killed {len(done)}"))
    return done


def summary(done: list[Outcome]) -> dict[str, object]:
    """The figures of some trainings."""
    events = [event for outcome in done for event in outcome.events]
    wrong = [what for outcome in done for what in outcome.wrong]
    return {
        "trainings": len(done),
        "with the expected SHA-256, and nothing else wrong": sum(not outcome.wrong for outcome in done),
        "wrong": dict(Counter(wrong)),
        "events": dict(Counter(what for what, _ in events).most_common()),
        "events by phase": dict(Counter(f"{what}, {where}" for what, where in events).most_common()),
        "seconds, longest": round(max((outcome.seconds for outcome in done), default=0), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=50)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainings = Trainings(draw_dataset(folder, 400))
        trainings.undisturbed(folder / "first")  # compiles the kernels
        expected = trainings.undisturbed(folder / "undisturbed")
        print(f"SHA-256 of an undisturbed training: {expected}", flush=True)
        parts: dict[str, Callable[[], list[Outcome]]] = {
            "elastic": lambda: lose_ranks(trainings, options.trainings, options.seed, folder, expected, MAX_EVENTS),
            "killed": lambda: lose_everything(trainings, options.kills, options.seed, folder, expected),
        }
        done = {part: run() for part, run in parts.items()}
    print(json.dumps({part: summary(outcomes) for part, outcomes in done.items()}))
    if any(outcome.wrong for outcomes in done.values() for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
