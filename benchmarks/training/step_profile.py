"""Profile of a training step: time, arithmetic, memory traffic and roofline fraction of each kind of work.

    python -m benchmarks.training.step_profile NETWORK [--steps N] [--threads N] [--inference]

The networks are those of `train_step`. Arithmetic counts direct convolution, 2 operations per multiply-add; memory
traffic counts every array that a call must read or write, once. The roofline is the longer of both at the rates
measured in the same run, with as many threads: products of 1024x1024 matrices, and copying 256 MB. Winograd needs
fewer operations than are counted, so its fraction may exceed 1. The rest of the step is Python and waiting.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.training.networks import CASES, OPTIMIZER
from benchmarks.training.side_ours import OurSide, without_preprocessing
from cnn.backends.base import Window
from cnn.backends.cpu import convolution
from cnn.backends.cpu.team import Team, get_team
from cnn.inference.folded import FoldedNetwork

# (kind of work, operations, arrays read or written) of a call
_Work = tuple[str, int, list[Any]]


def convolution_work(x: Any, out_shape: tuple[int, ...], window: Window, filters: int) -> tuple[str, int]:
    """The algorithm, and the operations of one convolution."""
    algorithm = "Winograd" if convolution.choose_tile(window, x.shape, filters) else "direct"
    if convolution.is_narrow(window, out_shape[2], x.shape[3], filters):
        algorithm = "few filters"
    return algorithm, 2 * int(np.prod(out_shape[:3])) * window.size[0] * window.size[1] * x.shape[3] * filters


def of_conv2d(result: Any, x: Any, weight: Any, bias: Any, window: Window, before_norm: bool) -> _Work:
    algorithm, flop = convolution_work(x, result.shape, window, weight.shape[3])
    return f"convolution, {algorithm}", flop, [x, weight, result]


def of_conv2d_packed(result: Any, x: Any, packed: Any, kind: str) -> _Work:
    algorithm, flop = convolution_work(x, result.shape, packed.window, result.shape[3])
    return f"convolution, {algorithm}", flop, [x, packed.kernels, result]


def of_conv2d_backward(
    result: Any, dy: Any, x: Any, weight: Any, window: Window, d_weight: Any, d_bias: Any, need_dx: bool
) -> _Work:
    algorithm, flop = convolution_work(x, dy.shape, window, weight.shape[3])
    both = [dy, x, weight, dy, result] if need_dx else []
    return f"convolution backward, {algorithm}", flop * (1 + need_dx), [x, dy, d_weight, d_weight, *both]


def of_dense(result: Any, x: Any, weight: Any, bias: Any) -> _Work:
    return "dense", 2 * x.shape[0] * weight.size, [x, weight, result]


def of_dense_backward(
    result: Any, dy: Any, x: Any, weight: Any, d_weight: Any, d_bias: Any, need_dx: bool
) -> _Work:
    both = [dy, weight, result] if need_dx else []
    return "dense backward", 2 * x.shape[0] * weight.size * (1 + need_dx), [x, dy, d_weight, d_weight, *both]


def elementwise(kind: str, passes: int = 1) -> Callable[..., _Work]:
    """Memory-bound work that reads its inputs `passes` times."""

    def of(result: Any, *arguments: Any, **_: Any) -> _Work:
        read = [a for a in arguments if isinstance(a, np.ndarray) and a.size > 4096]
        written = [r for r in (result if isinstance(result, tuple) else (result,)) if isinstance(r, np.ndarray)]
        return kind, 0, read * passes + written

    return of


def of_adamw(result: Any, *vectors: Any) -> _Work:
    weights, gradient, first, second = vectors[:4]
    return "optimizer", 0, [weights, gradient, first, second, weights, first, second]


WORK: dict[str, Callable[..., _Work]] = {
    "conv2d": of_conv2d,
    "conv2d_packed": of_conv2d_packed,
    "conv2d_backward": of_conv2d_backward,
    "dense": of_dense,
    "dense_backward": of_dense_backward,
    "batch_norm_train": elementwise("batch norm + activation", 2),
    "batch_norm_infer": elementwise("batch norm + activation"),
    "batch_norm_backward": elementwise("batch norm + activation backward", 2),
    "batch_norm_pool_train": elementwise("norm + activation + pool", 2),
    "batch_norm_pool_backward": elementwise("norm + activation + pool backward", 2),
    "activate": elementwise("activation"),
    "activate_backward": elementwise("activation backward"),
    "add": elementwise("add"),
    "max_pool": elementwise("pooling"),
    "max_pool_infer": elementwise("pooling"),
    "max_pool_backward": elementwise("pooling backward"),
    "global_average_pool": elementwise("pooling"),
    "global_average_pool_backward": elementwise("pooling backward"),
    "squared_norm": elementwise("gradient norm"),
    "adamw_step": of_adamw,
    "softmax_cross_entropy": elementwise("loss"),
}


def measured_rates(team: Team) -> tuple[float, float]:
    """The GFLOP/s of matrix products and the GB/s of copying, the best of seven runs each."""
    a, b = np.ones((2, 1024, 1024), np.float32)
    c = np.empty((team.threads, 1024, 1024), np.float32)
    src, dst = np.ones((2, 1 << 26), np.float32)  # 256 MB each

    def multiply(t: int, threads: int) -> None:
        np.dot(a, b, out=c[t])

    def copy(t: int, threads: int) -> None:
        own = slice(len(src) * t // threads, len(src) * (t + 1) // threads)
        dst[own] = src[own]

    def best(work: Callable[[int, int], None]) -> float:
        seconds = []
        for _ in range(7):
            began = time.perf_counter()
            team.run(work)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    return 2e-9 * 1024**3 * team.threads / best(multiply), 2e-9 * src.nbytes / best(copy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=CASES)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--inference", action="store_true")
    arguments = parser.parse_args()
    side = OurSide(arguments.network, arguments.threads, "cpu", OPTIMIZER)
    backend: Any = side.network.backend
    calls: dict[str, list[tuple[float, int, int]]] = defaultdict(list)

    def timed(method: Callable[..., Any], work: Callable[..., _Work]) -> Callable[..., Any]:
        def run(*values: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = method(*values, **named)
            seconds = time.perf_counter() - began
            kind, flop, arrays = work(result, *values, **named)
            calls[kind].append((seconds, flop, sum(array.nbytes for array in arrays)))
            return result

        return run

    with without_preprocessing():
        infer = FoldedNetwork(side.network)
        step: Callable[[], Any] = (lambda: infer(side.x)) if arguments.inference else side.step
        for _ in range(3):
            step()
        rates = measured_rates(get_team(arguments.threads))
        for name, work in WORK.items():
            setattr(backend, name, timed(getattr(backend, name), work))
        began = time.perf_counter()
        for _ in range(arguments.steps):
            step()
        total = (time.perf_counter() - began) / arguments.steps * 1e3
    what = "inference" if arguments.inference else "training step"
    print(
        f"{arguments.network}, {what} of {len(side.x)} images, {arguments.threads} threads, mean of "
        f"{arguments.steps}; {rates[0]:.0f} GFLOP/s in products, {rates[1]:.1f} GB/s in copying"
    )
    print(f"{'':34} {'ms':>8} {'of all':>7} {'GFLOP':>8} {'MB':>8} {'roofline fraction':>19}")
    rows = sorted(calls.items(), key=lambda item: -sum(call[0] for call in item[1]))
    accounted = 0.0
    for kind, made in rows:
        ms, gflop, megabytes = np.array(made).sum(axis=0) / arguments.steps * (1e3, 1e-9, 1e-6)
        limit = max(gflop / rates[0], megabytes * 1e-3 / rates[1]) * 1e3
        accounted += ms
        print(f"{kind:34} {ms:8.2f} {ms / total:7.1%} {gflop:8.2f} {megabytes:8.1f} {limit / ms:19.2f}")
    print(f"{'the rest':34} {total - accounted:8.2f} {(total - accounted) / total:7.1%}")
    print(f"{'all':34} {total:8.2f}")


if __name__ == "__main__":
    main()
