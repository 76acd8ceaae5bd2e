"""Images per second of a training on ranks against one process, and a model of larger clusters.

    python -m benchmarks.scaling.ranks DATASET.zarr [--rounds N] [--epochs N] [--set a.b=v ...] [--ranks N ...]

Sides, interleaved, after a warm-up round that compiles the kernels; rates are those of the epochs after the first, from
metrics.csv, without validation and saving; ratios are within a round:

    1 rank          `logpose train --ranks 1 --threads 1`
    N ranks         `logpose train --ranks N --threads 1`, for each N of --ranks
    2 at a time     two trainings with `--threads 1` that have nothing to do with each other, each bound to a CPU: the
                    limit of two CPUs; their images together
    2 threads       `logpose train --threads 2`, in one process, the same micro-batches
    whole batches   the same with train.micro_batch=0, as a training without ranks usually has

Then the model of docs/scaling.md: the bytes that a rank sends in a step, and the time that takes, as measured (from
ranks.csv) and as predicted for more ranks on faster and slower networks. Run it on an idle machine: the output ends
with the load by other processes. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.interleave import interleave
from benchmarks.worker import BackgroundLoad
from cnn.backends.base import MicroSums
from cnn.backends.reference import ReferenceBackend
from cnn.checkpoint import load_checkpoint
from cnn.training.micro_batches import PartialSum, TreeSum
from jobs.training.metrics import read_metrics
from jobs.training.ranks.messages import divide
from jobs.training.ranks.record import RankRow, read_ranks
from pipeline.dataset.store import Dataset
from pipeline.loader.micro_batches import MicroBatches

LATENCY_S = 0.0007  # of a request to another worker of Dask's, measured without bytes
NETWORKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}  # bytes per second, each way
TWO = "2 at a time"
CLUSTERS = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Step:
    """A training step: bytes of the gradient, micro-batches, and the seconds that a rank computes one of them."""

    gradient_bytes: int
    micro_batches: int
    micro_seconds: float

    def partial_sums(self, ranks: int) -> int:
        """The most partial sums that a rank has at the end of its micro-batches: 1 where they are a subtree."""
        return max(map(_nodes, divide(self.micro_batches, ranks)))

    def sent_bytes(self, ranks: int) -> float:
        """Bytes that a rank sends in a step: its partial sums of the other slices, and its slice's sum to all others.

        It receives as many.
        """
        return (ranks - 1) / ranks * self.gradient_bytes * (self.partial_sums(ranks) + 1)

    def seconds(self, ranks: int, bytes_per_second: float) -> tuple[float, float]:
        """The seconds of a step that the slowest rank computes, and those of the exchange."""
        most = max(map(len, divide(self.micro_batches, ranks)))
        exchange = self.sent_bytes(ranks) / bytes_per_second + 2 * LATENCY_S if ranks > 1 else 0.0
        return most * self.micro_seconds, exchange

    def efficiency(self, ranks: int, bytes_per_second: float) -> float:
        """The speed of this many ranks, divided by theirs without an exchange and with equal shares."""
        return self.micro_batches * self.micro_seconds / ranks / sum(self.seconds(ranks, bytes_per_second))


def _nodes(lanes: range) -> int:
    """Number of partial sums that are left of a run of micro-batches."""
    tree = TreeSum(lambda first, second: PartialSum(first.first, second.last, first.sums, None), lanes.start)
    nothing = MicroSums(None, None, None, None, 0)
    for index in lanes:
        tree.add(PartialSum(index, index + 1, nothing, None))
    return len(tree.nodes)


def _train(dataset: Path, run_dir: Path, arguments: Sequence[str], cpu: int | None = None) -> float:
    """Seconds that the epochs after the first took in `logpose train`, bound to one CPU if given."""
    command = [sys.executable, "-m", "logpose", "train", str(dataset), str(run_dir), "--overwrite", "-q", *arguments]
    subprocess.run([*(["taskset", "-c", str(cpu)] if cpu is not None else []), *command], check=True)
    rows = read_metrics(run_dir / "metrics.csv")[1:]
    return sum(row.seconds - row.validation_seconds - row.save_seconds for row in rows)


def _train_two(dataset: Path, run_dir: Path, arguments: Sequence[str]) -> float:
    """The mean of `_train`'s seconds of two trainings at the same time, on a CPU each."""
    with ThreadPoolExecutor(2) as pool:
        cpus = sorted(os.sched_getaffinity(0))[:2]
        started = [pool.submit(_train, dataset, run_dir / str(cpu), arguments, cpu) for cpu in cpus]
        return sum(each.result() for each in started) / 2


def _gradient_bytes(run_dir: Path) -> int:
    network = load_checkpoint(run_dir / "model.safetensors").card.build_network(ReferenceBackend(), seed=None)
    return network.parameters.size * 4


def _per_step(rows: Sequence[RankRow], steps: int) -> dict[str, float]:
    """Means over ranks and epochs, per step."""
    columns = "compute_seconds", "wait_seconds", "exchange_seconds", "wire_seconds", "sent_megabytes"
    return {name: sum(getattr(row.times, name) for row in rows) / (len(rows) * steps) for name in columns}


def _print_model(step: Step, bytes_per_second: float) -> dict[str, dict[int, float]]:
    """Print what the model predicts for larger clusters; return the efficiencies."""
    speeds = {f"here, {bytes_per_second / 1e6:,.0f} MB/s": bytes_per_second, **NETWORKS}
    print(f"\n{'ranks':>5} {'sent/step':>10}" + "".join(f"  {name + ': exchange, efficiency':>40}" for name in speeds))
    for ranks in CLUSTERS:
        if ranks > step.micro_batches:
            break
        line = f"{ranks:5} {step.sent_bytes(ranks) / 1e6:7.1f} MB"
        for speed in speeds.values():
            exchange = step.seconds(ranks, speed)[1]
            line += f"  {exchange * 1e3:29.1f} ms {step.efficiency(ranks, speed):7.1%}"
        print(line)
    return {
        name: {ranks: step.efficiency(ranks, speed) for ranks in CLUSTERS if ranks <= step.micro_batches}
        for name, speed in speeds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="measured, after one that is not")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--ranks", type=int, nargs="*", default=[2])
    options = parser.parse_args()
    load, data = BackgroundLoad(), Dataset.open(options.dataset)
    recipe = ["--epochs", str(options.epochs + 1), "--batch-size", str(options.batch)]
    recipe += [word for value in options.set for word in ("--set", value)]
    divided = [*recipe, "--set", f"train.micro_batch={options.micro_batch}"]
    sides = {
        "1 rank": [*divided, "--ranks", "1", "--threads", "1"],
        **{f"{ranks} ranks": [*divided, "--ranks", str(ranks), "--threads", "1"] for ranks in options.ranks},
        "2 threads": [*divided, "--threads", "2"],
        "whole batches": [*recipe, "--threads", "2"],
    }
    images = dict.fromkeys(sides, options.epochs * data.train.rows) | {TWO: 2 * options.epochs * data.train.rows}
    with tempfile.TemporaryDirectory() as folder:
        runs = {side: Path(folder) / side.replace(" ", "-") for side in sides}
        work = {side: partial(_train, options.dataset, runs[side], arguments) for side, arguments in sides.items()}
        work[TWO] = partial(_train_two, options.dataset, Path(folder) / "two", [*divided, "--threads", "1"])
        rates = interleave(work, images, options.rounds)
        most = max(options.ranks)
        rows = [row for row in read_ranks(runs[f"{most} ranks"] / "ranks.csv") if row.epoch > 1]
        alone = [row for row in read_ranks(runs["1 rank"] / "ranks.csv") if row.epoch > 1]
        gradient_bytes = _gradient_bytes(runs["1 rank"])
    rates.print("1 rank")
    division = MicroBatches(data.train.rows, options.batch, options.micro_batch)
    measured, single = (_per_step(each, division.steps) for each in (rows, alone))
    micro_seconds = single["compute_seconds"] * division.steps / division.count
    step = Step(gradient_bytes, division.lanes, micro_seconds)
    bytes_per_second = measured["sent_megabytes"] * 1e6 / measured["wire_seconds"]
    predicted = step.sent_bytes(most) / 1e6
    print(f"\ngradient {gradient_bytes / 1e6:.1f} MB; {most} ranks, per step and rank (the last round):")
    print(f"  sent {measured['sent_megabytes']:.1f} MB, predicted {predicted:.1f} MB")
    for name in ("compute_seconds", "wait_seconds", "exchange_seconds", "wire_seconds"):
        print(f"  {name.removesuffix('_seconds'):9}{measured[name] * 1e3:9.1f} ms")
    efficiencies = _print_model(step, bytes_per_second)
    speedups = {side: rates.ratio(side, "1 rank") for side in rates.of}
    print(f"\nload by other processes: {load.cores():.2f} cores")
    print(json.dumps({"speedups": speedups, "per_step": measured, "efficiency": efficiencies}))


if __name__ == "__main__":
    main()
