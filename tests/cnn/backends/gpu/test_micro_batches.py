"""Kernels that merge the results of micro-batches on the GPU, against the reference in float64."""

from typing import Any

import numpy as np
import pytest

from cnn.backends.base import MicroSums, StatisticsLayout
from cnn.backends.gpu import micro_batches
from cnn.backends.reference import ReferenceBackend

REFERENCE = ReferenceBackend()
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-12}
# Size of the gradient, the first element of the slices, and channels: with whole vectors, with a rest, not aligned.
CASES = ((1, 0, 1), (4, 0, 0), (259, 0, 40), (1023, 1, 300), (3001, 2, 7))


def layout_of(channels: int, dtype: type) -> StatisticsLayout:
    """Layers of 3 channels, the last perhaps of fewer: means of a layer, then its variances."""
    at = np.arange(channels)
    means = (at + at // 3 * 3).astype(np.int32)  # (S,)
    widths = np.minimum(3, channels - at // 3 * 3)  # (S,) of the channel's layer
    momentum, pixels = np.linspace(0.1, 1.0, channels), 1 + 50 * (at // 3)  # (S,) each
    return StatisticsLayout(
        np.stack([means, (means + widths).astype(np.int32)]), momentum.astype(dtype), pixels.astype(np.int32)
    )


def vector(device: Any, values: np.ndarray, first: int) -> Any:
    """A slice of a device vector with the same values, and margins that must not change."""
    whole = device.zeros(first + values.size + 5, values.dtype)
    whole[first : first + values.size] = device.asarray(values)
    return whole[first : first + values.size]


def to_device(device: Any, layout: StatisticsLayout) -> StatisticsLayout:
    return StatisticsLayout(*map(device.asarray, layout))


def draw(generator: np.random.Generator, size: int, channels: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """A gradient (size,) and statistics (2 S,), variances above 0."""
    return generator.normal(size=size).astype(dtype), generator.uniform(0.1, 3.0, 2 * channels).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "first", "channels"), CASES)
def test_sums_match_the_reference(device: Any, size: int, first: int, channels: int, dtype: type) -> None:
    generator, layout = np.random.default_rng(size), layout_of(channels, dtype)
    exact, found = [], []
    for rows in (7, 3):
        gradient, statistics = draw(generator, size, channels, dtype)
        loss, correct = np.array(generator.normal(), dtype), np.array(generator.integers(9))  # () each
        exact.append(MicroSums(gradient.astype(np.float64), loss, correct, statistics.astype(np.float64), rows))
        moved = vector(device, gradient, first), vector(device, statistics, 0)
        found.append(MicroSums(moved[0], device.asarray(loss), device.asarray(correct), moved[1], rows))
    expected = REFERENCE.merge_sums(*exact, layout)
    merged = micro_batches.merge_sums(*found, to_device(device, layout))
    assert merged.rows == 10 and merged.gradient is found[0].gradient and merged.statistics is found[0].statistics
    for result, value in zip(merged[:4], expected[:4], strict=True):
        np.testing.assert_allclose(result.get(), value, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_sums_without_statistics(device: Any) -> None:
    """As of several micro-batches of a network without batch norm."""
    sums = [
        MicroSums(*map(device.asarray, (np.full(9, value), np.array(value), np.array(2))), None, 4)
        for value in (1.5, 2.0)
    ]
    merged = micro_batches.merge_sums(*sums, to_device(device, layout_of(2, np.float64)))
    assert merged.gradient.get().tolist() == [3.5] * 9 and float(merged.loss.get()) == 3.5
    assert int(merged.correct.get()) == 4 and merged.statistics is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [0, 1, 40, 700])
@pytest.mark.parametrize("rows", [1, 33])
def test_running_statistics_match_the_reference(device: Any, channels: int, rows: int, dtype: type) -> None:
    generator, layout = np.random.default_rng(channels), layout_of(channels, dtype)
    state, statistics = (draw(generator, 1, channels, dtype)[1] for _ in range(2))  # (2 S,) each
    for at, value in zip(generator.integers(0, max(2 * channels, 1), 3), (np.nan, np.inf, -np.inf), strict=True):
        statistics[at : at + 1] = value  # a channel stays as it is where its mean or variance is not finite
    on_device = vector(device, state, 0)
    for ok in (0.0, 1.0):
        expected, outcome = state.astype(np.float64), np.array([ok, 1.0, 0.0, 0.0])  # (2 S,), (4,)
        with np.errstate(invalid="ignore"):
            REFERENCE.move_statistics(expected, statistics.astype(np.float64), layout, rows, outcome)
        micro_batches.move_statistics(
            on_device, device.asarray(statistics), to_device(device, layout), rows, device.asarray(outcome)
        )
        assert ok or (on_device.get() == state).all()
        np.testing.assert_allclose(on_device.get(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
