"""The CPU's kernels against the reference, call by call: any number of channels, odd sizes, every precision, and

work shared between threads however little there is of it. `test_parity.py` has the layers, this the kernels' corners.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cnn.backends.base import Window
from cnn.backends.cpu import CpuBackend, dense, norm, team
from cnn.backends.reference import ReferenceBackend
from cnn.inputs.augment import Augment
from cnn.layers.activations import ACTIVATIONS
from tests.cnn.test_gradients import thorough

REFERENCE = ReferenceBackend()
THREADS = st.integers(1, 3)
DTYPES = st.sampled_from([np.float32, np.float64])
KINDS = st.sampled_from(["", *ACTIVATIONS])
SEEDS = st.integers(0, 2**32 - 1)
CHANNELS = st.sampled_from([1, 3, 5, 7, 8, 10, 16, 24, 33, 64])


@pytest.fixture(autouse=True, scope="module")
def _everything_is_shared() -> Iterator[None]:
    """Arrays of a test are small, and would be one thread's work."""
    with patch.object(team, "_WORTH_SHARING", 0), patch.object(dense, "_WORTH_SHARING", 0):
        yield


def close(found: np.ndarray, expected: np.ndarray, dtype: type, sums: float = 1.0) -> None:
    """Within some roundings of the largest value; `sums` is about how many more a long sum takes."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == dtype
    tolerance = 20 * sums * float(np.finfo(dtype).eps)
    largest = float(np.abs(expected).max(initial=0.1))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * largest)


def numbers(generator: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return generator.normal(size=shape).astype(dtype)


@thorough
@given(
    pixels=st.integers(2, 900), channels=CHANNELS, kind=KINDS, dtype=DTYPES, threads=THREADS, seed=SEEDS,
    offset=st.sampled_from([0.0, 30.0]),
)  # fmt: skip
def test_batch_norm(
    pixels: int, channels: int, kind: str, dtype: type, threads: int, seed: int, offset: float
) -> None:
    generator = np.random.default_rng(seed)
    x = (numbers(generator, (pixels, 1, 1, channels), dtype) + offset).astype(dtype)
    dy = numbers(generator, x.shape, dtype)
    scale, shift = (numbers(generator, (channels,), dtype) for _ in range(2))
    results = []
    for backend in (REFERENCE, CpuBackend(threads)):
        y, mean, variance = backend.batch_norm_train(x, scale, shift, 1e-5, kind)
        # The derivative is taken at the reference's statistics, so that no ReLU falls the other way.
        mean, variance = results[0][1:3] if results else (mean, variance)
        inferred = backend.batch_norm_infer(x, scale, shift, mean, variance, 1e-5, kind)
        d_scale, d_shift = np.ones(channels, dtype), np.ones(channels, dtype)
        dx = backend.batch_norm_backward(dy, x, scale, shift, mean, variance, 1e-5, kind, d_scale, d_shift)
        results.append((y, mean, variance, inferred, d_scale, d_shift, dx))
    for found, expected in zip(results[1], results[0], strict=True):
        close(found, expected, dtype, sums=10 + offset**2 / 4)


@thorough
@given(pixels=st.integers(1, 900), channels=CHANNELS, dtype=DTYPES, threads=THREADS, seed=SEEDS)
def test_channel_sums(pixels: int, channels: int, dtype: type, threads: int, seed: int) -> None:
    x = numbers(np.random.default_rng(seed), (pixels, channels), dtype)
    found = norm.channel_sums(x, team.team_of(threads)).astype(dtype)
    close(found, x.astype(np.float64).sum(axis=0), dtype, sums=10)


@thorough
@given(size=st.integers(1, 700), dtype=DTYPES, threads=THREADS, seed=SEEDS, spread=st.sampled_from([0.01, 1.0, 30.0]))
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind: str, size: int, dtype: type, threads: int, seed: int, spread: float) -> None:
    backend, generator = CpuBackend(threads), np.random.default_rng(seed)
    x, dy = (spread * numbers(generator, (size,), np.float64)).astype(dtype), numbers(generator, (size,), dtype)
    exact_x, exact_dy = x.astype(np.float64), dy.astype(np.float64)
    y = backend.activate(kind, x)
    close(y, REFERENCE.activate(kind, exact_x), dtype)
    close(backend.add(x, -2 * x, kind), REFERENCE.activate(kind, -exact_x), dtype)
    expected = REFERENCE.activate_backward(kind, exact_dy, exact_x, y.astype(np.float64))
    close(backend.activate_backward(kind, dy, x, y), expected, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["", *ACTIVATIONS])
def test_activations_keep_nan_and_infinity(kind: str, dtype: type) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, 1.0, -1.0], dtype)
    for y in (CpuBackend(1).activate(kind, x), CpuBackend(1).add(x, np.zeros_like(x), kind)):
        low, high = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "": (-np.inf, np.inf)}.get(kind, (0.0, np.inf))
        assert np.isnan(y[0]) and y[1] == high
        assert not np.isfinite(y[2]) if kind in ("gelu", "silu") else y[2] == pytest.approx(low, abs=1e-37)
        assert np.isfinite(y[3:]).all()


@thorough
@example((1, 4, 4), 1, np.float32, Window((1, 1), (1, 1), left=1), 1, 0)  # some windows see nothing but padding
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(4, 11), st.integers(4, 11)), channels=CHANNELS, dtype=DTYPES,
    window=st.one_of(
        st.just(Window((2, 2), (2, 2))),
        st.builds(
            Window, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.tuples(st.integers(1, 3), st.integers(1, 3)),
            st.integers(0, 1), st.integers(0, 1), st.integers(0, 1), st.integers(0, 1),
        ),
    ),
    threads=THREADS, seed=SEEDS,
)  # fmt: skip
def test_pools(
    shape: tuple[int, int, int], channels: int, dtype: type, window: Window, threads: int, seed: int
) -> None:
    """With many equal numbers, of which the first one wins, and a NaN, which beats them all."""
    backend, generator = CpuBackend(threads), np.random.default_rng(seed)
    x = generator.integers(-3, 3, (*shape, channels)).astype(dtype)
    x.reshape(-1)[generator.integers(x.size)] = np.nan
    (y, winner), (expected, expected_winner) = backend.max_pool(x, window), REFERENCE.max_pool(x, window)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(winner, expected_winner)
    dy = numbers(generator, y.shape, dtype)
    dx = backend.max_pool_backward(dy, winner, x.shape, window)
    close(dx, REFERENCE.max_pool_backward(dy, expected_winner, x.shape, window), dtype)
    x = numbers(generator, x.shape, dtype)
    close(backend.average_pool(x, window), REFERENCE.average_pool(x, window), dtype)
    dx = backend.average_pool_backward(dy, x.shape, window)
    close(dx, REFERENCE.average_pool_backward(dy, x.shape, window), dtype)
    y, winner = backend.global_max_pool(x)
    np.testing.assert_array_equal(y, REFERENCE.global_max_pool(x)[0])
    dy = numbers(generator, y.shape, dtype)
    expected = REFERENCE.global_max_pool_backward(dy, REFERENCE.global_max_pool(x)[1], x.shape)
    close(backend.global_max_pool_backward(dy, winner, x.shape), expected, dtype)


def test_a_pool_over_many_places_counts_beyond_a_byte() -> None:
    x = np.zeros((2, 20, 20, 9), np.float32)
    x[:, 19, 18] = 1
    y, winner = CpuBackend(2).global_max_pool(x)
    assert (y == 1).all() and (winner == 19 * 20 + 18).all()
    dx = CpuBackend(2).global_max_pool_backward(y, winner, x.shape)
    np.testing.assert_array_equal(dx, x)


@thorough
@given(
    rows=st.integers(1, 40), classes=st.integers(1, 30), smoothing=st.sampled_from([0.0, 0.1]), weighted=st.booleans(),
    dtype=DTYPES, threads=THREADS, spread=st.sampled_from([1.0, 300.0]), seed=SEEDS,
)  # fmt: skip
def test_cross_entropy(
    rows: int, classes: int, smoothing: float, weighted: bool, dtype: type, threads: int, spread: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    logits = (spread * numbers(generator, (rows, classes), np.float64)).astype(dtype)
    labels = generator.integers(0, classes, rows)
    weights = generator.random(classes).astype(dtype) if weighted else None
    exact_weights = None if weights is None else weights.astype(np.float64)
    loss, gradient = CpuBackend(threads).softmax_cross_entropy(logits, labels, smoothing, weights, rows + 1)
    expected = REFERENCE.softmax_cross_entropy(logits.astype(np.float64), labels, smoothing, exact_weights, rows + 1)
    close(loss, expected[0], dtype)
    close(gradient, expected[1], dtype)


def test_a_nan_reaches_the_loss() -> None:
    for place in (0, 2):
        logits = np.zeros((3, 4), np.float32)
        logits[1, place] = np.nan
        assert np.isnan(CpuBackend(1).softmax_cross_entropy(logits, np.array([0, 1, 2]), 0.1, None, 3)[0])


@thorough
@given(
    size=st.integers(1, 500), decayed=st.floats(0.0, 1.0), dtype=DTYPES, threads=THREADS, nesterov=st.booleans(),
    step=st.integers(1, 1000), seed=SEEDS,
)  # fmt: skip
def test_optimizers(
    size: int, decayed: float, dtype: type, threads: int, nesterov: bool, step: int, seed: int
) -> None:
    start = [numbers(np.random.default_rng(seed + i), (size,), dtype) for i in range(4)]
    start[3] **= 2
    border, ends = round(decayed * size), []
    for backend in (REFERENCE, CpuBackend(threads)):
        weights, gradient, first, second = (vector.copy() for vector in start)
        backend.adamw_step(weights, gradient, first, second, border, 0.7, 0.01, 0.9, 0.99, 1e-8, 0.1, step)
        backend.sgd_step(weights, gradient, first, border, 0.7, 0.01, 0.9, nesterov, 0.1)
        np.testing.assert_array_equal(gradient, start[1])
        ends.append((weights, first, second, np.asarray(backend.squared_norm(gradient), dtype)))
    for found, expected in zip(ends[1], ends[0], strict=True):
        close(found, expected, dtype)


@thorough
@given(
    rows=st.integers(1, 20), inputs=st.integers(1, 70), outputs=st.integers(1, 20), bias=st.booleans(),
    need_dx=st.booleans(), dtype=DTYPES, threads=THREADS, seed=SEEDS,
)  # fmt: skip
def test_dense(
    rows: int, inputs: int, outputs: int, bias: bool, need_dx: bool, dtype: type, threads: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    x, weight = numbers(generator, (rows, inputs), dtype), numbers(generator, (inputs, outputs), dtype)
    offset = numbers(generator, (outputs,), dtype) if bias else None
    dy = numbers(generator, (rows, outputs), dtype)
    results = []
    with patch.object(dense, "_BLOCK", 16):
        for backend in (REFERENCE, CpuBackend(threads)):
            d_weight, d_bias = np.ones_like(weight), None if offset is None else np.ones_like(offset)
            dx = backend.dense_backward(dy, x, weight, d_weight, d_bias, need_dx)
            assert (dx is not None) == need_dx
            given_back = (backend.dense(x, weight, offset), d_weight, dx, d_bias)
            results.append([array for array in given_back if array is not None])
    for found, expected in zip(results[1], results[0], strict=True):
        close(found, expected, dtype, sums=3)


@thorough
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 40)), channels=st.integers(1, 12),
    crop=st.sampled_from([1.0, 0.3]), cutout=st.sampled_from([0.0, 0.5]), dtype=DTYPES, threads=THREADS, seed=SEEDS,
)  # fmt: skip
def test_images(
    shape: tuple[int, int, int], channels: int, crop: float, cutout: float, dtype: type, threads: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (*shape, channels), np.uint8)
    maps = Augment(crop_scale=crop, cutout=cutout).maps(seed, np.arange(len(images)), *shape[1:])
    mean, std = generator.uniform(50, 200, (2, channels)).astype(dtype)
    found = CpuBackend(threads).resample(images, *maps, mean, std)
    close(found, REFERENCE.resample(images, *maps, mean, std), dtype)


def test_a_pixel_that_is_not_moved_is_not_changed() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 11, 3), np.uint8)
    maps = Augment(flip=False, crop_scale=1.0).maps(1, np.arange(3), 9, 11)
    found = CpuBackend(2).resample(images, *maps, np.zeros(3, np.float32), np.ones(3, np.float32))
    np.testing.assert_array_equal(found, images)


# The team


def test_every_share_is_done_once_and_by_its_own_thread() -> None:
    done: list[tuple[int, int, str]] = []
    for _ in range(3):
        team.team_of(3).run(lambda t, threads: done.append((t, threads, threading.current_thread().name)))
    assert len(done) == 9 and len(set(done)) == 3 and {t for t, _, _ in done} == {0, 1, 2}


@pytest.mark.parametrize("culprit", [0, 2])
def test_a_failing_share_is_the_callers_error_and_the_team_goes_on(culprit: int) -> None:
    def fail(t: int, threads: int) -> None:
        if t == culprit:
            raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        team.team_of(3).run(fail)
    test_every_share_is_done_once_and_by_its_own_thread()


def test_two_callers_do_not_disturb_each_other() -> None:
    backend, x = CpuBackend(2), np.linspace(-3, 3, 100_003)

    def call(kind: str) -> bool:
        expected = REFERENCE.activate(kind, x)
        return all(np.allclose(backend.activate(kind, x), expected, rtol=1e-12) for _ in range(50))

    with ThreadPoolExecutor(3) as callers:
        assert all(callers.map(call, ["tanh", "sigmoid", "gelu"]))
