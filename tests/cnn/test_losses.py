"""Losses of class indices and of soft labels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.backends import pick_backend
from cnn.backends.reference import ReferenceBackend
from cnn.errors import RecipeError
from cnn.losses import LOSSES, BinaryCrossEntropy, Loss, MeanSquaredError, SoftmaxCrossEntropy
from tests.cnn.oracles import BACKENDS, directional_error, get_backend, thorough, to_device
from tests.cnn.test_gradients import LOSS_ROWS, TOLERANCE

REFERENCE = ReferenceBackend()


def test_cross_entropy_of_uniform_outputs_is_log_of_the_number_of_classes() -> None:
    loss, gradient, correct = SoftmaxCrossEntropy(0.0).forward(REFERENCE, np.zeros((4, 18)), np.array([0, 1, 2, 17]), 4)
    assert float(loss) == pytest.approx(math.log(18)) and correct == 1  # the first of equal outputs
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-15)


def test_losses_of_slices_add_up_to_that_of_the_batch() -> None:
    outputs, labels = np.random.default_rng(0).normal(size=(7, 3)), np.array([0, 1, 2, 0, 1, 2, 0])
    for loss in (SoftmaxCrossEntropy(0.1, (1.0, 2.0, 0.5)), BinaryCrossEntropy(), MeanSquaredError()):
        whole = loss.forward(REFERENCE, outputs, labels, 7)
        first, last = (loss.forward(REFERENCE, outputs[rows], labels[rows], 7) for rows in (slice(5), slice(5, 7)))
        assert float(whole[0]) == pytest.approx(float(first[0] + last[0]))
        np.testing.assert_allclose(whole[1], np.concatenate([first[1], last[1]]))
        assert whole[2] == first[2] + last[2] == (outputs.argmax(axis=1) == labels).sum()


def test_extreme_outputs_do_not_overflow() -> None:
    outputs, labels = np.array([[1000.0, -1000.0], [-1000.0, 1000.0]], np.float32), np.array([0, 0])
    for loss in (SoftmaxCrossEntropy(0.0), BinaryCrossEntropy()):
        value, gradient, _ = loss.forward(REFERENCE, outputs, labels, 2)
        assert math.isfinite(float(value)) and np.isfinite(gradient).all() and float(value) >= 999
        assert ((loss.probabilities(REFERENCE, outputs) >= 0) & (loss.probabilities(REFERENCE, outputs) <= 1)).all()


def test_class_weights_must_fit_the_classes() -> None:
    with pytest.raises(RecipeError, match="one number for each of the 3 classes, found 2"):
        SoftmaxCrossEntropy(0.0, (1.0, 2.0)).forward(REFERENCE, np.zeros((1, 3)), np.array([0]), 1)


def test_balanced_class_weights_are_inverse_to_the_class_sizes() -> None:
    balanced, plain = SoftmaxCrossEntropy(class_weights="balanced"), SoftmaxCrossEntropy()
    loss = balanced.balanced(np.array([6, 0, 2]))
    assert loss.class_weights == pytest.approx((8 / 12, 0, 8 / 4))
    assert loss.balanced(np.array([1, 1, 1])) is loss and plain.balanced(np.array([3, 1])) is plain
    with pytest.raises(RecipeError, match="class_weights: expected numbers, found 'balanced'"):
        balanced.forward(pick_backend("reference"), np.zeros((1, 2)), np.zeros(1, int), 1)


# Soft labels


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("kind", LOSS_ROWS, ids=lambda kind: kind.__name__)
def test_gradients_with_soft_labels(kind: type, backend_name: str) -> None:
    backend = get_backend(backend_name)

    @thorough
    @given(loss=LOSS_ROWS[kind], batch=st.integers(1, 6), seed=st.integers(0, 2**32 - 1), rest=st.integers(0, 5))
    def check(loss: Loss, batch: int, seed: int, rest: int) -> None:
        generator = np.random.default_rng(seed)
        outputs = 3 * generator.normal(size=(batch, 4))
        targets = to_device(backend, generator.dirichlet(np.ones(4), batch))

        def value(at: list[np.ndarray]) -> float:
            return float(loss.forward(backend, to_device(backend, at[0]), targets, batch + rest)[0])

        gradient = loss.forward(backend, to_device(backend, outputs), targets, batch + rest)[1]
        assert directional_error(value, [backend.to_host(gradient)], [outputs], seed) < TOLERANCE

    check()


@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 2.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_cross_entropy_of_soft_labels_is_the_weighted_mean_over_classes(
    backend_name: str, smoothing: float, weights: tuple[float, ...]
) -> None:
    """The mean of the losses with each class as the true one, times the mean of the class weights."""
    backend, generator = get_backend(backend_name), np.random.default_rng(0)
    logits, values = 3 * generator.normal(size=(1, 4)), generator.dirichlet(np.ones(4), 1)
    plain = LOSSES["softmax_cross_entropy"](smoothing)  # type: ignore[call-arg]
    weighted = LOSSES["softmax_cross_entropy"](smoothing, weights)  # type: ignore[call-arg]
    device = to_device(backend, logits)
    each = [float(plain.forward(backend, device, to_device(backend, np.array([k])), 1)[0]) for k in range(4)]
    expected = values[0] @ each * (values[0] @ (weights or np.ones(4)))
    found = float(weighted.forward(backend, device, to_device(backend, values), 1)[0])
    assert found == pytest.approx(expected, rel=1e-6)
    whole = weighted.forward(backend, device, to_device(backend, np.eye(4)[[2]]), 1)
    numbered = weighted.forward(backend, device, to_device(backend, np.array([2])), 1)
    for one, other in zip(whole, numbered, strict=True):
        np.testing.assert_allclose(backend.to_host(one), backend.to_host(other), rtol=1e-6)
