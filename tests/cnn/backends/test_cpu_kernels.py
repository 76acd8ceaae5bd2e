"""CPU kernels against the reference: any number of channels, odd sizes, both precisions, one to three threads.

`test_parity.py` tests the layers, this the kernels' edge cases.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cnn.backends.base import HALVING, Window
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
def _always_multithreaded() -> Iterator[None]:
    """Use all threads even for the tests' small arrays."""
    with patch.object(team, "_MIN_PARALLEL_SIZE", 0), patch.object(dense, "_MIN_PARALLEL_MACS", 0):
        yield


def assert_close(found: np.ndarray, expected: np.ndarray, dtype: type, sums: float = 1.0) -> None:
    """Equal within 20 roundings of the largest value, times `sums` for long sums."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == dtype
    tolerance = 20 * sums * float(np.finfo(dtype).eps)
    largest = float(np.abs(expected).max(initial=0.1))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * largest)


def normal(generator: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return generator.normal(size=shape).astype(dtype)


@thorough
@given(
    pixels=st.integers(2, 900), channels=CHANNELS, kind=KINDS, dtype=DTYPES, threads=THREADS, seed=SEEDS,
    offset=st.sampled_from([0.0, 30.0]),
)  # fmt: skip
def test_batch_norm_matches_the_reference(
    pixels: int, channels: int, kind: str, dtype: type, threads: int, seed: int, offset: float
) -> None:
    generator = np.random.default_rng(seed)
    x = (normal(generator, (pixels, 1, 1, channels), dtype) + offset).astype(dtype)
    dy = normal(generator, x.shape, dtype)
    scale, shift = (normal(generator, (channels,), dtype) for _ in range(2))
    results = []
    for backend in (REFERENCE, CpuBackend(threads)):
        running = np.zeros_like(scale), np.ones_like(scale)
        y, mean, variance = backend.batch_norm_train(x, scale, shift, *running, 0.1, 1e-5, kind)
        # Gradients use the reference's statistics, so that rounding flips no ReLU.
        mean, variance = results[0][1:3] if results else (mean, variance)
        inferred = backend.batch_norm_infer(x, scale, shift, mean, variance, 1e-5, kind)
        d_scale, d_shift = np.ones(channels, dtype), np.ones(channels, dtype)
        dx = backend.batch_norm_backward(dy, x, scale, shift, mean, variance, 1e-5, kind, d_scale, d_shift)
        results.append((y, mean, variance, inferred, d_scale, d_shift, dx))
    for found, expected in zip(results[1], results[0], strict=True):
        assert_close(found, expected, dtype, sums=10 + offset**2 / 4)


@thorough
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(2, 9), st.integers(2, 9)), channels=CHANNELS, kind=KINDS,
    dtype=DTYPES, threads=THREADS, seed=SEEDS,
)  # fmt: skip
def test_batch_norm_with_a_pool_matches_the_reference(
    shape: tuple[int, int, int], channels: int, kind: str, dtype: type, threads: int, seed: int
) -> None:
    generator, backend = np.random.default_rng(seed), CpuBackend(threads)
    x = normal(generator, (*shape, channels), dtype)
    dy = normal(generator, (shape[0], shape[1] // 2, shape[2] // 2, channels), dtype)
    scale, shift = (normal(generator, (channels,), dtype) for _ in range(2))
    found, alone = [np.zeros_like(scale), np.ones_like(scale)], [np.zeros_like(scale), np.ones_like(scale)]
    y, winners, mean, variance = backend.batch_norm_pool_train(x, scale, shift, *found, 0.1, 1e-5, kind)
    before, *statistics = backend.batch_norm_train(x, scale, shift, *alone, 0.1, 1e-5, kind)
    in_two_passes = (*backend.max_pool(before, HALVING), *statistics, *alone)
    for one, two in zip((y, winners, mean, variance, *found), in_two_passes, strict=True):
        np.testing.assert_array_equal(one, two)
    results = []
    for each in (REFERENCE, backend):
        d_scale, d_shift = np.ones(channels, dtype), np.ones(channels, dtype)
        more = scale, shift, mean, variance, 1e-5, kind, d_scale, d_shift
        results.append((each.batch_norm_pool_backward(dy, winners, x, *more), d_scale, d_shift))
    for one, two in zip(results[1], results[0], strict=True):
        assert_close(one, two, dtype, sums=10)


@thorough
@given(pixels=st.integers(1, 900), channels=CHANNELS, dtype=DTYPES, threads=THREADS, seed=SEEDS)
def test_channel_sums_match_the_reference(pixels: int, channels: int, dtype: type, threads: int, seed: int) -> None:
    x = normal(np.random.default_rng(seed), (pixels, channels), dtype)
    found = norm.channel_sums(x, team.get_team(threads)).astype(dtype)
    assert_close(found, x.astype(np.float64).sum(axis=0), dtype, sums=10)


@thorough
@given(size=st.integers(1, 700), dtype=DTYPES, threads=THREADS, seed=SEEDS, spread=st.sampled_from([0.01, 1.0, 30.0]))
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_match_the_reference(
    kind: str, size: int, dtype: type, threads: int, seed: int, spread: float
) -> None:
    backend, generator = CpuBackend(threads), np.random.default_rng(seed)
    x, dy = (spread * normal(generator, (size,), np.float64)).astype(dtype), normal(generator, (size,), dtype)
    exact_x, exact_dy = x.astype(np.float64), dy.astype(np.float64)
    y = backend.activate(kind, x)
    assert_close(y, REFERENCE.activate(kind, exact_x), dtype)
    assert_close(backend.add(x, -2 * x, kind), REFERENCE.activate(kind, -exact_x), dtype)
    expected = REFERENCE.activate_backward(kind, exact_dy, exact_x, y.astype(np.float64))
    assert_close(backend.activate_backward(kind, dy, x, y), expected, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["", *ACTIVATIONS])
def test_activations_propagate_nan_and_infinity(kind: str, dtype: type) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, 1.0, -1.0], dtype)
    for y in (CpuBackend(1).activate(kind, x), CpuBackend(1).add(x, np.zeros_like(x), kind)):
        low, high = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "": (-np.inf, np.inf)}.get(kind, (0.0, np.inf))
        assert np.isnan(y[0]) and y[1] == high
        assert not np.isfinite(y[2]) if kind in ("gelu", "silu") else y[2] == pytest.approx(low, abs=1e-37)
        assert np.isfinite(y[3:]).all()


@thorough
@example((1, 4, 4), 1, np.float32, Window((1, 1), (1, 1), left=1), 1, 0)  # some windows are entirely in the padding
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
def test_pools_match_the_reference(
    shape: tuple[int, int, int], channels: int, dtype: type, window: Window, threads: int, seed: int
) -> None:
    """With many ties, where the first element is the maximum, and a NaN, which propagates."""
    backend, generator = CpuBackend(threads), np.random.default_rng(seed)
    x = generator.integers(-3, 3, (*shape, channels)).astype(dtype)
    x.reshape(-1)[generator.integers(x.size)] = np.nan
    (y, argmax), (expected, expected_argmax) = backend.max_pool(x, window), REFERENCE.max_pool(x, window)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(argmax, expected_argmax)
    np.testing.assert_array_equal(backend.max_pool_infer(x, window), expected)
    dy = normal(generator, y.shape, dtype)
    dx = backend.max_pool_backward(dy, argmax, x.shape, window)
    assert_close(dx, REFERENCE.max_pool_backward(dy, expected_argmax, x.shape, window), dtype)
    x = normal(generator, x.shape, dtype)
    assert_close(backend.average_pool(x, window), REFERENCE.average_pool(x, window), dtype)
    dx = backend.average_pool_backward(dy, x.shape, window)
    assert_close(dx, REFERENCE.average_pool_backward(dy, x.shape, window), dtype)
    y, argmax = backend.global_max_pool(x)
    np.testing.assert_array_equal(y, REFERENCE.global_max_pool(x)[0])
    dy = normal(generator, y.shape, dtype)
    expected = REFERENCE.global_max_pool_backward(dy, REFERENCE.global_max_pool(x)[1], x.shape, x.dtype)
    assert_close(backend.global_max_pool_backward(dy, argmax, x.shape, x.dtype), expected, dtype)


def test_max_pool_argmax_exceeds_a_byte() -> None:
    x = np.zeros((2, 20, 20, 9), np.float32)
    x[:, 19, 18] = 1
    y, argmax = CpuBackend(2).global_max_pool(x)
    assert (y == 1).all() and (argmax == 19 * 20 + 18).all()
    dx = CpuBackend(2).global_max_pool_backward(y, argmax, x.shape, x.dtype)
    np.testing.assert_array_equal(dx, x)


@thorough
@given(
    rows=st.integers(1, 40), classes=st.integers(1, 30), smoothing=st.sampled_from([0.0, 0.1]), weighted=st.booleans(),
    dtype=DTYPES, threads=THREADS, spread=st.sampled_from([1.0, 300.0]), seed=SEEDS,
)  # fmt: skip
def test_cross_entropy_matches_the_reference(
    rows: int, classes: int, smoothing: float, weighted: bool, dtype: type, threads: int, spread: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    logits = (spread * normal(generator, (rows, classes), np.float64)).astype(dtype)
    labels = generator.integers(0, classes, rows)
    weights = generator.random(classes).astype(dtype) if weighted else None
    exact_weights = None if weights is None else weights.astype(np.float64)
    loss, gradient, correct = CpuBackend(threads).softmax_cross_entropy(logits, labels, smoothing, weights, rows + 1)
    expected = REFERENCE.softmax_cross_entropy(logits.astype(np.float64), labels, smoothing, exact_weights, rows + 1)
    assert_close(loss, expected[0], dtype)
    assert_close(gradient, expected[1], dtype)
    assert correct == (logits.argmax(axis=1) == labels).sum()


def test_cross_entropy_propagates_nan() -> None:
    for place in (0, 2):
        logits = np.zeros((3, 4), np.float32)
        logits[1, place] = np.nan
        assert np.isnan(CpuBackend(1).softmax_cross_entropy(logits, np.array([0, 1, 2]), 0.1, None, 3)[0])


@thorough
@given(
    size=st.integers(1, 500), decayed=st.floats(0.0, 1.0), dtype=DTYPES, threads=THREADS, nesterov=st.booleans(),
    step=st.integers(1, 1000), seed=SEEDS,
)  # fmt: skip
def test_optimizers_match_the_reference(
    size: int, decayed: float, dtype: type, threads: int, nesterov: bool, step: int, seed: int
) -> None:
    start = [normal(np.random.default_rng(seed + i), (size,), dtype) for i in range(4)]
    start[3] **= 2
    border, ends = round(decayed * size), []
    outcome = np.array([1.0, 0.7, 0.0, 0.0])  # (4,)
    for backend in (REFERENCE, CpuBackend(threads)):
        weights, gradient, first, second = (vector.copy() for vector in start)
        backend.adamw_step(weights, gradient, first, second, border, outcome, 0.01, 0.9, 0.99, 1e-8, 0.1, step)
        backend.sgd_step(weights, gradient, first, border, outcome, 0.01, 0.9, nesterov, 0.1)
        np.testing.assert_array_equal(gradient, start[1])
        ends.append((weights, first, second, np.asarray(backend.squared_norm(gradient), dtype)))
    for found, expected in zip(ends[1], ends[0], strict=True):
        assert_close(found, expected, dtype)


@thorough
@given(
    rows=st.integers(1, 20), inputs=st.integers(1, 70), outputs=st.integers(1, 20), bias=st.booleans(),
    need_dx=st.booleans(), dtype=DTYPES, threads=THREADS, seed=SEEDS,
)  # fmt: skip
def test_dense_matches_the_reference(
    rows: int, inputs: int, outputs: int, bias: bool, need_dx: bool, dtype: type, threads: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    x, weight = normal(generator, (rows, inputs), dtype), normal(generator, (inputs, outputs), dtype)
    offset = normal(generator, (outputs,), dtype) if bias else None
    dy = normal(generator, (rows, outputs), dtype)
    results = []
    with patch.object(dense, "_BLAS_ROWS", (16, 16)):
        for backend in (REFERENCE, CpuBackend(threads)):
            d_weight, d_bias = np.ones_like(weight), None if offset is None else np.ones_like(offset)
            dx = backend.dense_backward(dy, x, weight, d_weight, d_bias, need_dx)
            assert (dx is not None) == need_dx
            returned = (backend.dense(x, weight, offset), d_weight, dx, d_bias)
            results.append([array for array in returned if array is not None])
    for found, expected in zip(results[1], results[0], strict=True):
        assert_close(found, expected, dtype, sums=3)


@thorough
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 40)), channels=st.integers(1, 12),
    crop=st.sampled_from([1.0, 0.3]), cutout=st.sampled_from([0.0, 0.5]), dtype=DTYPES, threads=THREADS, seed=SEEDS,
)  # fmt: skip
def test_resample_matches_the_reference(
    shape: tuple[int, int, int], channels: int, crop: float, cutout: float, dtype: type, threads: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (*shape, channels), np.uint8)
    maps = Augment(crop_scale=crop, cutout=cutout).maps(seed, np.arange(len(images)), *shape[1:])
    mean, std = generator.uniform(50, 200, (2, channels)).astype(dtype)
    found = CpuBackend(threads).resample(images, *maps, mean, std)
    assert_close(found, REFERENCE.resample(images, *maps, mean, std), dtype)


def test_identity_resampling_changes_nothing() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 11, 3), np.uint8)
    maps = Augment(flip=False, crop_scale=1.0).maps(1, np.arange(3), 9, 11)
    found = CpuBackend(2).resample(images, *maps, np.zeros(3, np.float32), np.ones(3, np.float32))
    np.testing.assert_array_equal(found, images)


# Thread team


def test_team_runs_each_slice_once_on_its_own_thread() -> None:
    done: list[tuple[int, int, str]] = []
    for _ in range(3):
        team.get_team(3).run(lambda t, threads: done.append((t, threads, threading.current_thread().name)))
    assert len(done) == 9 and len(set(done)) == 3 and {t for t, _, _ in done} == {0, 1, 2}


@pytest.mark.parametrize("failing", [0, 2])
def test_team_raises_a_threads_error_and_stays_usable(failing: int) -> None:
    def fail(t: int, threads: int) -> None:
        if t == failing:
            raise MemoryError("out of memory")

    with pytest.raises(MemoryError, match="out of memory"):
        team.get_team(3).run(fail)
    test_team_runs_each_slice_once_on_its_own_thread()


def test_concurrent_callers_get_correct_results() -> None:
    backend, x = CpuBackend(2), np.linspace(-3, 3, 100_003)

    def call(kind: str) -> bool:
        expected = REFERENCE.activate(kind, x)
        return all(np.allclose(backend.activate(kind, x), expected, rtol=1e-12) for _ in range(50))

    with ThreadPoolExecutor(3) as callers:
        assert all(callers.map(call, ["tanh", "sigmoid", "gelu"]))
