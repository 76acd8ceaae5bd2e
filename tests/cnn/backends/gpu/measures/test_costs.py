"""All main kernels move no more sectors of memory than they must, and meet no more than that in banks.

On shapes of whole tiles and vectors; the others come in kernels for correctness, not speed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cnn.backends.base import Window
from cnn.backends.gpu import convolution, elementwise, kernels, losses, norm, optimizers, pooling, preprocess
from cnn.backends.gpu.convolution import TILES, Tile
from cnn.inputs.mixup import Mix
from tests.cnn.backends.gpu.measures.costs import counted_costs, wasteful
from tests.cnn.backends.gpu.storage import WIDE, random, to_device
from tests.cnn.backends.gpu.test_convolution import SAME, Case, Layer, _only
from tests.cnn.backends.gpu.test_preprocess import EVERYTHING, inputs_of

PASSES = ("FORWARD", "INPUT", "WEIGHT")


def convolve(which: str, precision: str, tile: Tile) -> None:
    """One pass of one tile, as wide as it, with statistics in FORWARD."""
    import cupy

    rows, channels = (16, 16 if tile.rows > 128 else 8), tile.cols if which == "INPUT" else 32
    filters = 32 if which == "INPUT" else tile.cols
    layer = Layer(precision, Case((1, *rows, channels), filters, SAME))
    layer.weight, layer.bias = layer.weight.copy(), layer.bias.copy()
    with pytest.MonkeyPatch.context() as patch, _only(patch, tile):
        if which == "FORWARD":
            layer.forward(statistics=True)
        elif which == "INPUT":
            layer.input_gradient()
        else:
            d_weight = cupy.empty(layer.weight_shape, layer.wide)  # (KH, KW, C, K)
            convolution.weight_gradient(layer.dy, layer.x, layer.window, layer.math, d_weight)


def normalise(kind: str, channels: int) -> None:
    generator, wide = np.random.default_rng(0), np.dtype(WIDE[kind]).name
    x, dy = (random(generator, (2, 8, 6, channels), kind) for _ in range(2))  # (N, H, W, C) each
    scale, shift, d_scale, d_shift = (random(generator, (channels,), wide) for _ in range(4))  # (C,) each
    mean, variance = norm.merge(norm.statistics(x), 96, scale, shift, 0.1)  # (C,) each
    norm.apply(x, scale, shift, mean, variance, 1e-5, "relu")
    norm.backward(dy, x, scale, shift, mean, variance, 1e-5, "relu", d_scale, d_shift)
    norm.channel_sums(x, d_shift)


def pool(kind: str, channels: int) -> None:
    shape = (2, 8, 6, channels)
    x = random(np.random.default_rng(0), shape, kind)  # (N, H, W, C)
    for window in (Window((2, 2), (2, 2)), Window((3, 3), (2, 2), 1, 1, 1, 1)):
        y, winners = pooling.max_pool(x, window)  # (N, OH, OW, C) each
        pooling.max_pool_backward(y, winners, shape, window)
        pooling.average_pool_backward(pooling.average_pool(x, window), shape, window)
    y, winners = pooling.global_max_pool(x)  # (N, C) each
    pooling.global_max_pool_backward(y, winners, shape, x.dtype)
    pooling.global_average_pool_backward(pooling.global_average_pool(x), shape, x.dtype)


def each_number(kind: str, channels: int) -> None:
    generator = np.random.default_rng(0)
    x, dy = (random(generator, (2, 8, 6, channels), kind) for _ in range(2))  # (N, H, W, C) each
    elementwise.add(x, dy, "relu")
    elementwise.activate("gelu", x)
    elementwise.activate_backward("gelu", dy, x, None)
    elementwise.scale(x, 2.0)
    elementwise.dropout(x, 0.3, 5, None)
    elementwise.convert(x, np.uint16 if kind == "float32" else np.float32)
    if kind == "float32":
        elementwise.softmax_backward(elementwise.softmax(x.reshape(-1, channels)), x.reshape(-1, channels))


def optimise(kind: str, size: int) -> None:
    generator = np.random.default_rng(0)
    vectors = [random(generator, (size,), kind) for _ in range(4)]  # (size,) each
    outcome = to_device(np.array([1.0, 1.0, 0.0, 0.0]), "float64")  # (4,)
    loss, correct = to_device(np.array(1.0), kind), to_device(np.array(1), "int64")  # () each
    optimizers.judge_step(outcome, loss, correct, vectors[1], 1.0)
    optimizers.sgd_step(*vectors[:3], size // 2, outcome, 0.1, 0.9, True, 0.01)
    optimizers.adamw_step(*vectors, size // 2, outcome, 0.1, 0.9, 0.99, 1e-8, 0.01, 1)
    optimizers.average(*vectors[:2], 0.1, outcome)
    optimizers.copy(*vectors[:2], outcome)


def lose(kind: str, classes: int) -> None:
    generator = np.random.default_rng(0)
    logits, soft = random(generator, (32, classes), kind), random(generator, (32, classes), kind)  # (N, K) each
    losses.softmax_cross_entropy(logits, soft, 0.1, None, 32)
    losses.count_correct(logits, soft)


def augment(kind: str, side: int) -> None:
    """Its reads are gathered from pixels of 3 bytes; see `test_augmented_images_are_written_in_whole_sectors`."""
    generator, dtype = np.random.default_rng(0), np.dtype(np.uint16 if kind == "bf16" else np.float32)
    images = to_device(generator.integers(0, 256, (4, side, side, 3)), "uint8")  # (B, H, W, 3)
    rows, labels = (to_device(np.arange(4), "int64") for _ in range(2))  # (B,) each
    mean, std = (to_device(np.full(3, value), "float32") for value in (120.0, 60.0))  # (3,) each
    numbers = inputs_of(EVERYTHING, Mix("cutmix")).numbers(1, 0, side, side)
    preprocess.augment(images, rows, labels, numbers, mean, std, dtype)


# By name: how to run the kernels, and on what.
CASES: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
    f"{which} {precision} {tile.rows}x{tile.cols}": (convolve, (which, precision, tile))
    for precision in ("bf16", "tf32") for tile in TILES for which in PASSES
} | {
    f"{function.__name__} {kind} {size}": (function, (kind, size))
    for function, kinds, size in (
        (normalise, ("bf16", "float32"), 64), (normalise, ("bf16",), 96), (pool, ("bf16", "float32"), 64),
        (each_number, ("bf16", "float32"), 64), (optimise, ("float32",), 8192), (lose, ("float32",), 64),
    )
    for kind in kinds
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_kernels_waste_neither_sectors_nor_banks(emulator: Any, case: str) -> None:
    function, arguments = CASES[case]
    with counted_costs() as counted:
        function(*arguments)
    assert counted and not wasteful(counted)


@pytest.mark.parametrize("kind", ["bf16", "float32"])
def test_augmented_images_are_written_in_whole_sectors(emulator: Any, kind: str) -> None:
    lines = kernels.source("preprocess.cu").splitlines()
    with counted_costs() as counted:
        augment(kind, 32)
    stores = [cost for cost in counted if "4*)out = " in lines[int(cost.place.removeprefix("line ")) - 1]]
    assert stores and not wasteful(stores)


def table() -> str:
    """The largest factors of each kernel, as a table in Markdown."""
    worst: dict[str, dict[str, float]] = {}
    gathered = [(augment, (kind, 32)) for kind in ("bf16", "float32")]
    for function, arguments in [*CASES.values(), *gathered]:
        with counted_costs() as counted:
            function(*arguments)
        for cost in counted:
            of_kernel = worst.setdefault(cost.kernel, {"global": 1.0, "shared": 1.0})
            of_kernel[cost.memory] = max(of_kernel[cost.memory], cost.factor)
    rows = [f"| `{name}` | {costs['global']:.2f} | {costs['shared']:.2f} |" for name, costs in sorted(worst.items())]
    return "\n".join(["| Kernel | Sectors | Banks |", "|---|---|---|", *rows])


if __name__ == "__main__":
    from tests.cuda_cpu import emulated_cuda

    with emulated_cuda():
        print(table())

