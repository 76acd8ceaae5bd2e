"""Any number of threads, and vectors of 8 or of 16 numbers, give the same bits: every kernel, and whole networks."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cnn.backends.base import LOSS, OK, SCALE, Window
from cnn.backends.cpu import CpuBackend, convolution, dense, processor, team
from cnn.backends.cpu.widths import NARROW, WIDE
from cnn.layers.activations import ACTIVATIONS
from cnn.losses import SoftmaxCrossEntropy
from cnn.models import MODELS
from cnn.network import Network
from cnn.training.optimizers import SGD, AdamW
from cnn.training.trainer import Recipe, Trainer
from tests.cnn.test_gradients import thorough

CPUS = {threads: CpuBackend(threads) for threads in (1, 2, 3, 4, 8)}
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([np.float32, np.float64])
CHANNELS = st.sampled_from([1, 3, 8, 12, 17, 33, 40])


@pytest.fixture
def _many_portions() -> Iterator[None]:
    """Divide even the tests' small arrays between the threads, and their sums into portions."""
    with (
        patch.object(team, "_MIN_PARALLEL_SIZE", 0),
        patch.object(team, "_PORTIONS", ((4000, 24), (400, 5), (40, 2))),
        patch.object(convolution, "_MIN_PORTION_PIXELS", 1),
        patch.object(convolution, "_SUM_COUNTS", ((1 << 11, 8), (1 << 13, 4), (1 << 15, 2))),
        patch.object(convolution, "_BLOCK_BYTES", 2000),
        patch.object(convolution, "_MIN_BLOCK_PIXELS", 10),
        patch.object(dense, "_MIN_PARALLEL_MACS", 0),
        patch.object(dense, "_BLAS_ROWS", (16, 48)),
    ):
        yield


many_portions = pytest.mark.usefixtures("_many_portions")


def assert_same_bits(compute: Callable[[CpuBackend], Any]) -> None:
    """`compute` returns arrays, numbers or None: equal bits with any number of threads, and with either width."""
    results = {threads: _bytes(compute(backend)) for threads, backend in CPUS.items()}
    for threads, found in results.items():
        assert found == results[1], f"{threads} threads differ from one"
    other = NARROW + WIDE - processor.lanes()
    with patch.object(processor, "lanes", lambda: other):
        assert _bytes(compute(CPUS[2])) == results[1], f"vectors of {other} numbers differ from the usual ones"


def _bytes(values: Any) -> list[bytes]:
    values = values if isinstance(values, tuple) else (values,)
    return [b"" if value is None else np.ascontiguousarray(value).tobytes() for value in values]


def draw(seed: int, dtype: Any, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(dtype) for shape in shapes]


# Kernels


@many_portions
@thorough
@example((4, 8, 8, 33), 17, 3, 1, 2, np.float32, 0)  # rounded up to 16 lanes, the sums would have fewer portions
@example((4, 8, 8, 33), 17, 3, 1, 0, np.float32, 0)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 14), st.integers(1, 14), CHANNELS), filters=CHANNELS,
    size=st.sampled_from([1, 2, 3, 5]), stride=st.integers(1, 2), tile=st.sampled_from([None, 0, 2, 4]),
    dtype=DTYPES, seed=SEEDS,
)  # fmt: skip
def test_convolutions(
    shape: tuple[int, ...], filters: int, size: int, stride: int, tile: int | None, dtype: Any, seed: int
) -> None:
    window = Window((size, size), (stride, stride), 1, 1, 1, 1)
    if min(window.out_size(*shape[1:3])) < 1:
        return
    weights = (size, size, shape[3], filters)
    x, weight, bias, dy = draw(
        seed, dtype, shape, weights, (filters,), (shape[0], *window.out_size(*shape[1:3]), filters)
    )

    def compute(backend: CpuBackend) -> tuple[Any, ...]:
        d_weight, d_bias = np.empty_like(weight), np.empty_like(bias)
        y = backend.conv2d(x, weight, bias, window)
        return y, backend.conv2d_backward(dy, x, weight, window, d_weight, d_bias, True), d_weight, d_bias

    chosen = tile if tile is not None and (size, stride) == (3, 1) else None
    choice = convolution.choose_tile if chosen is None else lambda *args, **kwargs: chosen
    with patch.object(convolution, "choose_tile", choice):
        assert_same_bits(compute)


@many_portions
@thorough
@given(
    pixels=st.integers(1, 5000), channels=CHANNELS, kind=st.sampled_from(["", *ACTIVATIONS]), dtype=DTYPES, seed=SEEDS
)
def test_batch_norm(pixels: int, channels: int, kind: str, dtype: Any, seed: int) -> None:
    x, dy = draw(seed, dtype, (pixels, channels), (pixels, channels))
    scale, shift = draw(seed, dtype, (channels,), (channels,))

    def compute(backend: CpuBackend) -> tuple[Any, ...]:
        running = np.zeros((2, channels), dtype)
        y, mean, variance = backend.batch_norm_train(x, scale, shift, *running, 0.1, 1e-5, kind)
        gradients = np.empty((2, channels), dtype)
        dx = backend.batch_norm_backward(dy, x, scale, shift, mean, variance, 1e-5, kind, *gradients)
        return y, mean, variance, running, dx, gradients

    assert_same_bits(compute)


@many_portions
@thorough
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(2, 14), st.integers(2, 14), CHANNELS),
    kind=st.sampled_from(["", *ACTIVATIONS]), dtype=DTYPES, seed=SEEDS,
)  # fmt: skip
def test_batch_norm_with_a_pool(shape: tuple[int, ...], kind: str, dtype: Any, seed: int) -> None:
    channels = shape[3]
    x, dy = draw(seed, dtype, shape, (shape[0], shape[1] // 2, shape[2] // 2, channels))
    scale, shift = draw(seed, dtype, (channels,), (channels,))

    def compute(backend: CpuBackend) -> tuple[Any, ...]:
        running, gradients = np.zeros((2, channels), dtype), np.empty((2, channels), dtype)
        y, winners, *statistics = backend.batch_norm_pool_train(x, scale, shift, *running, 0.1, 1e-5, kind)
        dx = backend.batch_norm_pool_backward(dy, winners, x, scale, shift, *statistics, 1e-5, kind, *gradients)
        return y, winners, *statistics, running, dx, gradients

    assert_same_bits(compute)


@many_portions
@thorough
@given(rows=st.integers(1, 40), inputs=st.integers(1, 500), outputs=st.integers(1, 120), dtype=DTYPES, seed=SEEDS)
def test_dense(rows: int, inputs: int, outputs: int, dtype: Any, seed: int) -> None:
    x, weight, bias, dy = draw(seed, dtype, (rows, inputs), (inputs, outputs), (outputs,), (rows, outputs))

    def compute(backend: CpuBackend) -> tuple[Any, ...]:
        d_weight, d_bias = np.empty_like(weight), np.empty_like(bias)
        y = backend.dense(x, weight, bias)
        inferred = backend.dense_infer(x, weight, bias)
        return y, backend.dense_backward(dy, x, weight, d_weight, d_bias, True), d_weight, d_bias, inferred

    assert_same_bits(compute)


@many_portions
@thorough
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 14), st.integers(1, 14), CHANNELS), size=st.integers(1, 3),
    stride=st.integers(1, 3), kind=st.sampled_from(list(ACTIVATIONS)), dtype=DTYPES, seed=SEEDS,
)  # fmt: skip
def test_pooling_and_activations(
    shape: tuple[int, ...], size: int, stride: int, kind: str, dtype: Any, seed: int
) -> None:
    window = Window((size, size), (stride, stride))
    if min(window.out_size(*shape[1:3])) < 1:
        return
    x, z = draw(seed, dtype, shape, shape)
    (dy,) = draw(seed, dtype, (shape[0], *window.out_size(*shape[1:3]), shape[3]))

    def compute(backend: CpuBackend) -> tuple[Any, ...]:
        y, argmax = backend.max_pool(x, window)
        peaks, places = backend.global_max_pool(x)
        a = backend.activate(kind, x)
        return (
            y, argmax, backend.max_pool_backward(dy, argmax, shape, window),
            backend.average_pool(x, window), backend.average_pool_backward(dy, shape, window),
            peaks, places, backend.global_max_pool_backward(peaks, places, shape, dtype),
            a, backend.activate_backward(kind, z, x, a), backend.add(x, z, kind),
        )  # fmt: skip

    assert_same_bits(compute)


@many_portions
@thorough
@given(
    rows=st.integers(1, 200), classes=st.integers(2, 20), soft=st.booleans(), smoothing=st.sampled_from([0.0, 0.2]),
    dtype=DTYPES, seed=SEEDS,
)  # fmt: skip
def test_cross_entropy(rows: int, classes: int, soft: bool, smoothing: float, dtype: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    (logits,) = draw(seed, dtype, (rows, classes))
    labels = generator.integers(0, classes, rows)
    targets = generator.dirichlet(np.ones(classes), rows).astype(dtype) if soft else labels
    assert_same_bits(lambda backend: tuple(backend.softmax_cross_entropy(logits, targets, smoothing, None, rows)))


@many_portions
@thorough
@given(size=st.integers(1, 6000), decayed=st.floats(0.0, 1.0), dtype=DTYPES, seed=SEEDS)
def test_optimizers(size: int, decayed: float, dtype: Any, seed: int) -> None:
    vectors = draw(seed, dtype, *[(size,)] * 4)

    def compute(backend: CpuBackend) -> tuple[Any, ...]:
        w, g, m, v = (vector.copy() for vector in vectors)
        outcome = np.array([1.0, 1.0, 0.0, 0.0])
        backend.judge_step(outcome, np.asarray(0.5, dtype), np.asarray(1), g, 1.0)
        assert outcome[OK] and outcome[LOSS] == 0.5 and outcome[SCALE] <= 1
        border = int(decayed * size)
        backend.sgd_step(w, g, m, border, outcome, 0.01, 0.9, True, 0.1)
        np.abs(v, out=v)
        backend.adamw_step(w, g, m, v, border, outcome, 0.01, 0.9, 0.99, 1e-8, 0.1, 2)
        return outcome, w, m, v

    assert_same_bits(compute)


@many_portions
@thorough
@given(shape=st.tuples(st.integers(1, 7), st.integers(1, 20), st.integers(1, 20)), seed=SEEDS)
def test_images(shape: tuple[int, int, int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    count, height, width = shape
    images = generator.integers(0, 256, (*shape, 3), np.uint8)
    ys, xs = (np.sort(generator.uniform(0, side - 1, (count, side))) for side in (height, width))
    (x,) = draw(seed, np.float32, (*shape, 3))
    mean, std = np.ones((2, 3), np.float32)
    boxes = np.tile(np.array([0, height, 0, width]), (count, 1))
    partners, weights = generator.permutation(count), generator.random(count).astype(np.float32)
    assert_same_bits(
        lambda backend: (
            backend.resample(images, ys, xs, None, mean, std), backend.blend(x, partners, weights, boxes)
        )
    )  # fmt: skip


# Whole networks, with the real sizes of portions

TASKS = {  # model, options, image side, batch
    "resnet9": ({"width": 16}, 32, 48),
    "resnet18": ({"width": 16}, 32, 48),
    "airbench94": ({}, 32, 40),
    "seed": ({}, 64, 24),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("optimizer", [AdamW(lr=0.01), SGD(lr=0.01)], ids=["adamw", "sgd"])
def test_training_steps(name: str, optimizer: Any) -> None:
    """Two steps: loss, gradient, weights and state."""
    options, side, batch = TASKS[name]
    model = MODELS[name](**options)
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (batch, side, side, 3), np.uint8), generator.integers(0, 4, batch)

    def compute(backend: CpuBackend) -> tuple[Any, ...]:
        network = Network(model.layers((side, side, 3), 4), (side, side, 3), backend)
        recipe = Recipe(model=model, optimizer=optimizer, loss=SoftmaxCrossEntropy(), batch_size=batch, clip=1.0)
        trainer = Trainer(network, recipe, np.full(3, 100.0), np.full(3, 60.0), batch)
        losses = [trainer.train_batch(images, labels, np.arange(batch)).loss_sum for _ in range(2)]
        tensors = trainer.tensors()
        digests = [hashlib.sha256(np.ascontiguousarray(tensors[key])).hexdigest() for key in sorted(tensors)]
        return np.array(losses), network.gradients.flat, network.parameters.flat, np.array(digests)

    assert_same_bits(compute)


def test_portions_depend_on_shapes_alone() -> None:
    """Large arrays have enough portions for 8 threads, and small ones a single sum."""
    assert [team.portion_count(size) for size in (0, 1000, 1 << 16, 1 << 18, 1 << 22)] == [1, 1, 2, 8, 24]
    counts = [convolution._sum_count(size, 10**6) for size in (1000, 1 << 17, 1 << 19, 1 << 20)]
    assert counts == [8, 4, 2, 1] and convolution._sum_count(1000, 200) == 2
