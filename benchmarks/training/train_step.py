"""Training step, inference, peak memory and first step of our networks against PyTorch.

    python -m benchmarks.training.train_step [--rounds N] [--threads N] [--only NAME ...] [--cold] [--json PATH]

Each side runs in its own process (`side_ours`, and `side_torch` for each of PyTorch's two memory layouts), with the
same number of threads, initial weights and batch of noise. Sides are interleaved, A B A B, about half a second each,
idle while another runs. Times are medians over the rounds. Ratios are the median of PyTorch's time over ours within a
round, with PyTorch's faster layout (and for inference the faster of batch norm folded or not); above 1 we are faster.

A training step is forward, loss, backward, the check for finite numbers and the AdamW update, from normalised images;
inference is the forward pass of the batch. Peak memory is that of a process that only trains, imports included.

GEMM fraction: the step's arithmetic, counted as direct convolution (2 operations per multiply-add, training 3 times the
forward pass), over its time, as a fraction of the best rate of 1024x1024 matrix products in the same run. Winograd
needs fewer operations than are counted, so it may exceed 1.

Run it on an idle machine: PyTorch's threads synchronise many times a step, so background load costs it more than us.
The header has the load by other processes. The last line is one JSON object with the geometric means and minima of the
ratios.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.training.networks import CASES, Case
from benchmarks.worker import BackgroundLoad, Worker, available_cpus

LAYOUTS = ("contiguous", "channels_last")
GEMM_FLOP = 2 * 1024**3
MEMORY_STEPS = 2  # after the first; later steps do not raise the peak


@dataclass
class Timing:
    """The times of training or inference in each round, in milliseconds, by side."""

    flop: int
    ours: list[float] = field(default_factory=list)
    theirs: dict[str, list[float]] = field(default_factory=dict)  # by variant

    @property
    def best(self) -> str:
        """PyTorch's fastest variant."""
        return min(self.theirs, key=lambda variant: float(np.median(self.theirs[variant])))

    @property
    def ratios(self) -> np.ndarray:
        return np.array(self.theirs[self.best]) / np.array(self.ours)  # (rounds,)

    @property
    def ratio(self) -> float:
        return float(np.median(self.ratios))

    def row(self, name: str, gemm: float) -> str:
        """A row of the table; `gemm` is the rate of matrix products, in operations per second."""
        ours, theirs = float(np.median(self.ours)), float(np.median(self.theirs[self.best]))
        fractions = [self.flop / (ms / 1e3) / gemm for ms in (ours, theirs)]
        return (
            f"{name:9} {ours:9.1f} {theirs:9.1f}  {self.best:18} {self.ratio:6.2f}  "
            f"{self.ratios.min():5.2f} to {self.ratios.max():5.2f}  {fractions[0]:19.2f} {fractions[1]:5.2f}"
        )


@dataclass
class Result:
    """All measurements of one network: memory in MB, the first step in seconds since the process started."""

    case: Case
    train: Timing
    infer: Timing
    gemm: dict[str, list[float]] = field(default_factory=lambda: {"numpy": [], "torch": []})  # milliseconds
    optimizers: dict[str, str] = field(default_factory=dict)  # PyTorch's faster AdamW, by layout
    memory: dict[str, float] = field(default_factory=dict)
    first_step: dict[str, float] = field(default_factory=dict)

    @property
    def their_memory(self) -> float:
        return min(self.memory[layout] for layout in LAYOUTS)

    @property
    def memory_ratio(self) -> float:
        """Our memory over that of PyTorch's better layout; below 1 we use less."""
        return self.memory["ours"] / self.their_memory


@dataclass(frozen=True)
class Bench:
    """The measurement's options; `seconds` is seconds of each side in a round."""

    rounds: int
    threads: int
    seconds: float
    device: str

    @contextmanager
    def sides(self, case: Case) -> Iterator[dict[str, Worker]]:
        """Start a worker for each side, by name."""
        with ExitStack() as stack:
            yield {name: stack.enter_context(self.side(case, name)) for name in ("ours", *LAYOUTS)}

    def side(self, case: Case, name: str, env: dict[str, str] | None = None) -> Worker:
        if name == "ours":
            return Worker("benchmarks.training.side_ours", case.name, str(self.threads), self.device, env=env)
        return Worker("benchmarks.training.side_torch", case.name, str(self.threads), name, env=env)

    def time(self, case: Case, gemm: Worker) -> Result:
        result = Result(case, Timing(3 * 2 * case.macs), Timing(2 * case.macs))
        with self.sides(case) as sides:
            check_same(case, sides)
            result.optimizers = {layout: sides[layout].ask("optimizer") for layout in LAYOUTS}
            for number in range(-1, self.rounds):
                warm_up = number < 0
                seconds, runs = (0.0, 1) if warm_up else (self.seconds, 2)
                trained = {name: side.ask("train", seconds=seconds, min_runs=runs) for name, side in sides.items()}
                inferred = {name: side.ask("infer", seconds=seconds / 2, min_runs=runs) for name, side in sides.items()}
                products = {
                    "numpy": gemm.ask("gemm", seconds=seconds / 4, min_runs=runs),
                    "torch": sides["contiguous"].ask("gemm", seconds=seconds / 4, min_runs=runs),
                }
                if warm_up:
                    continue
                result.train.ours.append(trained["ours"])
                result.infer.ours.append(inferred["ours"]["ours"])
                for layout in LAYOUTS:
                    result.train.theirs.setdefault(layout, []).append(trained[layout])
                    for variant, ms in inferred[layout].items():
                        result.infer.theirs.setdefault(layout + variant, []).append(ms)
                for library, ms in products.items():
                    result.gemm[library].append(ms)
        return result

    def measure_memory(self, result: Result) -> None:
        """Measure peak memory and the first step, in new processes that only train."""
        for name in ("ours", *LAYOUTS):
            with self.side(result.case, name) as side:
                side.ask("train", seconds=0.0, min_runs=1)
                result.first_step[name] = side.answered - side.started
                side.ask("train", seconds=0.0, min_runs=MEMORY_STEPS)
                result.memory[name] = side.ask("peak")

    def first_step_cold(self) -> float:
        """The time of the default model's first step with an empty kernel cache."""
        with (
            tempfile.TemporaryDirectory() as folder,
            self.side(CASES["default"], "ours", {"NUMBA_CACHE_DIR": folder}) as side,
        ):
            side.ask("train", seconds=0.0, min_runs=1)
            return side.answered - side.started


def check_same(case: Case, sides: dict[str, Worker]) -> None:
    """Check that both sides have the same loss in the first step."""
    ours, theirs = sides["ours"].ask("loss"), sides["contiguous"].ask("loss")
    if not abs(ours - theirs) < 1e-3 * abs(theirs):
        raise SystemExit(f"{case.name}: expected equal losses, found {ours} and PyTorch's {theirs}: different networks")


def gemm_rate(results: list[Result]) -> float:
    """The rate of matrix products in operations per second, the best of either library."""
    return GEMM_FLOP / (min(min(times) for result in results for times in result.gemm.values()) / 1e3)


def geometric_mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def summary(results: list[Result]) -> dict[str, object]:
    train, infer = [r.train.ratio for r in results], [r.infer.ratio for r in results]
    return {
        "train_geomean": round(geometric_mean(train), 3), "train_min": round(min(train), 3),
        "infer_geomean": round(geometric_mean(infer), 3), "infer_min": round(min(infer), 3),
        "memory_max_ratio": round(max(r.memory_ratio for r in results), 3),
        "first_step_s": round(max(r.first_step["ours"] for r in results), 2),
        "rows": {
            r.case.name: {"train": round(r.train.ratio, 3), "infer": round(r.infer.ratio, 3),
                          "memory": round(r.memory_ratio, 3)}
            for r in results
        },
    }  # fmt: skip


def table(results: list[Result], kind: Callable[[Result], Timing], title: str) -> None:
    print(
        f"\n{title:9} {'ours ms':>9} {'torch ms':>9}  {'torch as':18} {'ratio':>6}  {'range':13}  "
        "GEMM fraction: ours torch"
    )
    for result in results:
        print(kind(result).row(result.case.name, gemm_rate(results)))
    print(f"{'geomean':9} {'':39} {geometric_mean([kind(r).ratio for r in results]):6.2f}")


def print_tables(results: list[Result]) -> None:
    table(results, lambda r: r.train, "training")
    table(results, lambda r: r.infer, "inference")
    print(
        f"\n{'memory':9} {'ours MB':>9} {'torch MB':>9}  {'ours/torch':>10}  {'first step: ours s':>20} {'torch s':>8}"
    )
    for r in results:
        print(
            f"{r.case.name:9} {r.memory['ours']:9.0f} {r.their_memory:9.0f}  {r.memory_ratio:10.2f}  "
            f"{r.first_step['ours']:20.2f} {min(r.first_step[layout] for layout in LAYOUTS):8.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "reference"), default="cpu")
    parser.add_argument("--seconds", type=float, default=0.6, help="seconds of each side in a round")
    parser.add_argument("--cold", action="store_true", help="also time a first step that compiles all kernels")
    parser.add_argument("--json", type=Path, help="write all times to this file")
    arguments = parser.parse_args()
    bench = Bench(arguments.rounds, arguments.threads, arguments.seconds, arguments.device)

    began, background, results = time.perf_counter(), BackgroundLoad(), []
    with Worker("benchmarks.worker", env={"OPENBLAS_NUM_THREADS": str(bench.threads)}) as gemm:
        for name in arguments.only:
            result = bench.time(CASES[name], gemm)
            bench.measure_memory(result)
            results.append(result)
            print(f"{name}: training {result.train.ratio:.2f}, inference {result.infer.ratio:.2f}", file=sys.stderr)

    others = round(background.cores(), 2)
    gemm_gflops = round(gemm_rate(results) / 1e9, 1)
    optimizers = sorted({kind for result in results for kind in result.optimizers.values()})
    print(
        f"{bench.threads} threads, {bench.rounds} rounds; PyTorch's AdamW: {' or '.join(optimizers)}; "
        f"GEMM {gemm_gflops:.0f} GFLOP/s\n"
        f"cores used by other processes: {others}{': too many for reliable figures' if others > 0.1 else ''}"
    )
    print_tables(results)
    closing = summary(results) | {"other_cores": others, "gemm_gflops": gemm_gflops}
    if arguments.cold:
        closing["first_step_cold_s"] = round(bench.first_step_cold(), 2)
        print(f"\nour first step of `default` with an empty kernel cache: {closing['first_step_cold_s']} s")
    print(f"\ntook {time.perf_counter() - began:.0f} s")
    if arguments.json:
        details = {"options": asdict(bench), "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(closing | details, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(closing))


if __name__ == "__main__":
    main()
