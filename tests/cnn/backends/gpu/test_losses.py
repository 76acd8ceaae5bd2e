"""Kernels of losses on the GPU, against the reference in float64."""

import math
from typing import Any

import numpy as np
import pytest

from cnn.backends.gpu import losses
from cnn.backends.reference import ReferenceBackend

REFERENCE = ReferenceBackend()
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-10}
# Lanes per row are 8 for up to 64 classes, else 32; over 512 or 128 rows, there are several blocks.
SHAPES = ((1, 1), (3, 2), (7, 10), (33, 64), (130, 10), (601, 9), (5, 65), (40, 203), (600, 65))


def close(found: Any, expected: Any, dtype: type) -> None:
    """Relative error in norm."""
    assert np.linalg.norm(found.get() - expected) <= TOLERANCE[dtype] * max(np.linalg.norm(expected), 1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["labels", "soft", "weighted labels", "weighted soft"])
def test_cross_entropy_matches_the_reference(device: Any, kind: str, dtype: type) -> None:
    for number, (rows, classes) in enumerate(SHAPES):
        generator = np.random.default_rng(number)
        logits = (5 * generator.normal(size=(rows, classes))).astype(dtype)
        targets = generator.integers(0, classes, rows)  # (N,)
        if kind.endswith("soft"):
            targets = generator.dirichlet(np.ones(classes), rows).astype(np.float32)  # (N, K), as for MixUp
        weights = generator.uniform(0.5, 2.0, classes).astype(dtype) if kind.startswith("weighted") else None  # (K,)
        smoothing = 0.1 * (number % 2)
        loss, gradient, correct = losses.softmax_cross_entropy(
            device.asarray(logits), device.asarray(targets), smoothing,
            None if weights is None else device.asarray(weights), rows + 3,
        )  # fmt: skip
        exact = None if weights is None else weights.astype(np.float64)
        expected = REFERENCE.softmax_cross_entropy(logits.astype(np.float64), targets, smoothing, exact, rows + 3)
        assert (loss.shape, loss.dtype, gradient.dtype, correct.shape) == ((), dtype, dtype, ())
        close(loss, expected[0], dtype)
        close(gradient, expected[1], dtype)
        assert int(correct.get()) == int(expected[2])


def test_a_limit_of_blocks_leaves_more_rows_to_each(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_MAX_BLOCKS", 3)
    logits, labels = np.random.default_rng(0).normal(size=(601, 9)), np.arange(601) % 9
    loss, gradient, correct = losses.softmax_cross_entropy(device.asarray(logits), device.asarray(labels), 0.1, None, 9)
    expected = REFERENCE.softmax_cross_entropy(logits, labels, 0.1, None, 9)
    close(loss, expected[0], np.float64)
    close(gradient, expected[1], np.float64)
    assert int(correct.get()) == int(expected[2])


@pytest.mark.parametrize("classes", [10, 70])
def test_extreme_logits_do_not_overflow_and_nan_is_propagated(device: Any, classes: int) -> None:
    logits = np.zeros((3, classes), np.float32)
    logits[0, -1], logits[1, 1] = 2000.0, -2000.0
    labels = np.array([0, 1, 2])
    loss, gradient, correct = losses.softmax_cross_entropy(device.asarray(logits), device.asarray(labels), 0.0, None, 1)
    assert float(loss.get()) == pytest.approx(4000 + math.log(classes - 1) + math.log(classes), rel=1e-6)
    assert np.isfinite(gradient.get()).all() and int(correct.get()) == 0
    for row, column in ((0, 0), (2, classes - 1)):
        poisoned = logits.copy()
        poisoned[row, column] = np.nan
        results = losses.softmax_cross_entropy(device.asarray(poisoned), device.asarray(labels), 0.1, None, 3)
        assert np.isnan(results[0].get()) and np.isnan(results[1].get()[row]).all()
        assert np.isfinite(results[1].get()[1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_count_correct_breaks_ties_as_the_reference(device: Any, dtype: type) -> None:
    for number, (rows, classes) in enumerate((*SHAPES, (300, 3))):
        generator = np.random.default_rng(number)
        outputs = generator.integers(-2, 3, (rows, classes)).astype(dtype)  # many are equal
        outputs[generator.random(outputs.shape) < 0.02] = np.nan
        outputs[generator.random(outputs.shape) < 0.02] = np.inf
        outputs[0] = -np.inf
        labels = outputs.argmax(axis=1) * (generator.random(rows) < 0.5)  # (N,)
        soft = generator.integers(0, 3, (rows, classes)).astype(dtype)  # (N, K)
        for targets in (labels, soft):
            found = losses.count_correct(device.asarray(outputs), device.asarray(targets))
            assert int(found.get()) == int(REFERENCE.count_correct(outputs, targets))


def test_no_rows_have_no_loss(device: Any) -> None:
    outputs, labels = device.zeros((0, 4), np.float32), device.zeros((0,), np.int64)
    loss, gradient, correct = losses.softmax_cross_entropy(outputs, labels, 0.1, None, 8)
    assert (float(loss.get()), gradient.shape, int(correct.get())) == (0.0, (0, 4), 0)
    assert int(losses.count_correct(outputs, labels).get()) == 0
