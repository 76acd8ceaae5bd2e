"""Inference of our networks against the engines that people deploy: ONNX Runtime and OpenVINO.

    python -m benchmarks.inference.inference_peers [--rounds N] [--threads N] [--only NAME ...] [--python PYTHON]

Each side runs in its own process, with the same network, weights, batch of noise and number of threads, and in turns,
A B C A B C, about a third of a second each. Images are normalised already. float32 on all sides, unless named
otherwise: `openvino-bf16` computes with bfloat16 (AMX where the processor has it), `int8` with quantised weights and
activations; these are other results, and no ratio of them counts in the means. OpenVINO has the latency hint and a
fixed batch. Before it is timed, each float32 engine's output is compared with ours.

Ratios are the engine's time over ours within a round, the median of the rounds: above 1, ours is faster. PYTHON is an
interpreter with onnx, onnxruntime, openvino and the extra `bench`, by default this one. The last line is one JSON
object.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.training.networks import CASES, Case
from benchmarks.training.train_step import geometric_mean
from benchmarks.worker import BackgroundLoad, Worker, available_cpus

FLOAT32 = ("onnxruntime", "openvino")
OTHERS = ("openvino-bf16", "openvino-int8", "onnxruntime-int8")
TOLERANCE = 1e-3  # of the largest output


def start(case: Case, threads: int, python: Path | None, stack: ExitStack) -> dict[str, Worker]:
    """Start all sides, by name; check that those of float32 compute what ours does."""
    ours = Worker("benchmarks.training.side_ours", case.name, str(threads), "cpu")
    sides = {"ours": stack.enter_context(ours)}
    for engine in FLOAT32 + OTHERS:
        worker = Worker("benchmarks.inference.side_engine", engine, case.name, str(threads), python=python)
        sides[engine] = stack.enter_context(worker)
    expected = np.array(sides["ours"].ask("logits"))  # (N, classes)
    for engine in FLOAT32:
        difference = np.abs(np.array(sides[engine].ask("logits")) - expected).max() / np.abs(expected).max()
        if not difference < TOLERANCE:
            raise SystemExit(f"{case.name}: expected equal outputs, found {engine}'s {difference:.1e} apart")
    return sides


def measure(case: Case, arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Milliseconds of each side: (rounds,)."""
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        sides = start(case, arguments.threads, arguments.python, stack)
        for number in range(-1, arguments.rounds):
            for name, side in sides.items():
                ms = side.ask("infer", seconds=arguments.seconds if number >= 0 else 0.0, min_runs=3)
                if number >= 0:
                    times.setdefault(name, []).append(ms["ours"] if name == "ours" else ms)
    return {name: np.array(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=0.35, help="of each side in a round")
    parser.add_argument("--python", type=Path)
    arguments = parser.parse_args()
    background, ratios = BackgroundLoad(), {}
    print(f"{'':10} {'ours ms':>9}" + "".join(f"  {engine + ': ms, ratio':>30}" for engine in FLOAT32 + OTHERS))
    for name in arguments.only:
        times = measure(CASES[name], arguments)
        ratios[name] = {engine: times[engine] / times["ours"] for engine in FLOAT32 + OTHERS}  # (rounds,) each
        line = f"{name:10} {np.median(times['ours']):9.1f}"
        for engine, each in ratios[name].items():
            span = f"({each.min():.2f} to {each.max():.2f})"
            line += f"  {np.median(times[engine]):9.1f} {np.median(each):6.2f} {span}"
        print(line, flush=True)
    medians = {name: {engine: float(np.median(each)) for engine, each in row.items()} for name, row in ratios.items()}
    means = {engine: geometric_mean([row[engine] for row in medians.values()]) for engine in FLOAT32 + OTHERS}
    print(f"{'geomean':10} {'':9}" + "".join(f"  {'':9} {mean:6.2f} {'':14}" for mean in means.values()))
    others = round(background.cores(), 2)
    print(f"{arguments.threads} threads, {arguments.rounds} rounds; cores used by other processes: {others}")
    faster = {name: min(row[engine] for engine in FLOAT32) for name, row in medians.items()}
    print(json.dumps({"rows": medians, "geomean": means, "faster_engine_geomean": geometric_mean(list(faster.values())),
                      "other_cores": others}))  # fmt: skip


if __name__ == "__main__":
    main()
