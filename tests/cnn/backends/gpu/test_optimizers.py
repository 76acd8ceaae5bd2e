"""Kernels of optimizer steps and of a step's outcome on the GPU, against the reference in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cnn.backends.gpu import optimizers
from cnn.backends.gpu.readback import Readback
from cnn.backends.reference import ReferenceBackend

REFERENCE = ReferenceBackend()
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-12}
# Size, and the first element of the slices: with whole aligned vectors, with a rest before and after them, without any.
SPANS = ((1, 0), (3, 1), (4, 0), (258, 3), (1023, 2), (9001, 1))


def vectors(device: Any, number: int, size: int, first: int, dtype: type) -> tuple[list[np.ndarray], list[Any]]:
    """Host vectors (size,), and slices of device vectors with the same values and margins that must not change."""
    host = [np.random.default_rng(number + i).normal(size=size).astype(dtype) for i in range(4)]
    host[3] **= 2  # a second moment
    slices = []
    for values in host:
        whole = device.zeros(first + size + 5, dtype)
        whole[first : first + size] = device.asarray(values)
        slices.append(whole[first : first + size])
    return host, slices


Update = Callable[[Any, list[Any], int, Any], None]
UPDATES: dict[str, Update] = {
    "sgd": lambda by, v, decayed, outcome: by.sgd_step(*v[:3], decayed, outcome, 0.1, 0.9, False, 0.05),
    "nesterov": lambda by, v, decayed, outcome: by.sgd_step(*v[:3], decayed, outcome, 0.1, 0.9, True, 0.05),
    "adamw": lambda by, v, decayed, outcome: by.adamw_step(*v, decayed, outcome, 0.1, 0.9, 0.99, 1e-8, 0.05, 3),
    "average": lambda by, v, decayed, outcome: by.average(v[0], v[1], 0.3, outcome),
    "copy": lambda by, v, decayed, outcome: by.copy(v[0], v[1], outcome),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", UPDATES)
def test_updates_match_the_reference(device: Any, name: str, dtype: type) -> None:
    update = UPDATES[name]
    outcome = np.array([1.0, 0.7, 0.0, 0.0])  # (4,)
    for number, (size, first) in enumerate(SPANS):
        host, slices = vectors(device, number, size, first, dtype)
        decayed = (0, size // 2, size)[number % 3]
        expected = [values.astype(np.float64) for values in host]  # (size,) each
        update(optimizers, slices, decayed, device.asarray(outcome))
        update(REFERENCE, expected, decayed, outcome)
        for found, exact in zip(slices, expected, strict=True):
            np.testing.assert_allclose(found.get(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", UPDATES)
def test_a_failed_step_changes_nothing(device: Any, name: str) -> None:
    host, slices = vectors(device, 0, 301, 1, np.float32)
    UPDATES[name](optimizers, slices, 100, device.asarray(np.array([0.0, 1.0, 0.0, 0.0])))
    for found, values in zip(slices, host, strict=True):
        np.testing.assert_array_equal(found.get(), values)


@pytest.mark.parametrize("name", UPDATES)
def test_vectors_without_common_alignment(device: Any, name: str) -> None:
    """As no network has them, since all its vectors are sliced alike."""
    host, slices = vectors(device, 0, 301, 1, np.float32)
    slices[1] = vectors(device, 0, 301, 2, np.float32)[1][1]
    expected = [values.astype(np.float64) for values in host]  # (301,) each
    outcome = np.array([1.0, 0.5, 0.0, 0.0])  # (4,)
    UPDATES[name](optimizers, slices, 100, device.asarray(outcome))
    UPDATES[name](REFERENCE, expected, 100, outcome)
    for found, exact in zip(slices, expected, strict=True):
        np.testing.assert_allclose(found.get(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "first"), [*SPANS, (70_001, 0), (0, 0)])
def test_outcome_matches_the_reference(device: Any, size: int, first: int, dtype: type) -> None:
    host, slices = vectors(device, size, size, first, dtype)
    for clip in (0.0, 0.5, 1e6):
        outcome, expected = device.asarray(np.array([1.0, 9.0, 9.0, 9.0])), np.array([1.0, 9.0, 9.0, 9.0])  # (4,) each
        loss, correct = np.array(2.5, dtype), np.array(7)  # () each
        optimizers.judge_step(outcome, device.asarray(loss), device.asarray(correct), slices[1], clip)
        REFERENCE.judge_step(expected, loss, correct, host[1], clip)
        np.testing.assert_allclose(outcome.get(), expected, rtol=1e-12)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_this_step_and_all_after_it(device: Any, poison: float) -> None:
    gradient = device.asarray(np.ones(2050, np.float32))
    loss, correct = device.asarray(np.float32(1.0)), device.asarray(np.int64(3))
    outcome = device.asarray(np.array([1.0, 1.0, 0.0, 0.0]))  # (4,)
    optimizers.judge_step(outcome, device.asarray(np.float32(poison)), correct, gradient, 0.0)
    np.testing.assert_array_equal(outcome.get(), [0.0, 1.0, poison, 3.0])
    optimizers.judge_step(outcome, loss, correct, gradient, 0.0)
    np.testing.assert_array_equal(outcome.get(), [0.0, 1.0, 1.0, 3.0])
    for at in (0, 1024, 2049):
        outcome[0] = 1.0
        poisoned = np.ones(2050, np.float32)
        poisoned[at] = poison
        optimizers.judge_step(outcome, loss, correct, device.asarray(poisoned), 0.0)
        assert outcome.get()[0] == 0.0
    outcome[0] = 1.0
    huge = device.asarray(np.full(2050, 3e38, np.float32))  # whose squares float32 could not hold
    optimizers.judge_step(outcome, loss, correct, huge, 1.0)
    assert outcome.get()[0] == 1.0 and outcome.get()[1] == pytest.approx(1.0 / (3e38 * 2050**0.5))


def test_values_are_read_as_they_were_when_asked_for(device: Any) -> None:
    readback, values = Readback(), device.asarray(np.array([1.0, 2.0, 3.0, 4.0]))
    first = readback.read_later(values)
    values[0] = 5.0
    second = readback.read_later(values)
    values[0] = 6.0
    readback.read_later(values)  # dropped unread: its memory is used again
    third = readback.read_later(values[:2])
    assert [copy()[0] for copy in (third, first, second, first)] == [6.0, 1.0, 5.0, 1.0]
    kept = first()
    for value in range(20):
        values[0] = float(value)
        assert readback.read_later(values)()[0] == value
    assert kept[0] == 1.0 and len(readback._slots) <= 4
