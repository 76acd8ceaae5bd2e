"""Evaluation metrics and confidence calibration."""

import math

import numpy as np
import pytest

from cnn.evaluation.calibration import calibrate, confidence, fit_temperature, reliability, softmax
from cnn.evaluation.metrics import Evaluation, wilson_interval

# Three classes; the last image has two equal outputs, of which the first counts as the larger.
OUTPUTS = np.array([[3, 1, 0], [2, 5, 1], [0, 4, 3], [1, 0, 2], [2, 2, 1]], np.float32)  # (5, 3)
LABELS = np.array([0, 1, 2, 0, 1])  # (5,)


def test_metrics_match_values_computed_by_hand() -> None:
    evaluation = Evaluation(1.0, OUTPUTS, LABELS)
    assert evaluation.rows == 5
    np.testing.assert_array_equal(evaluation.predicted, [0, 1, 1, 2, 0])
    np.testing.assert_array_equal(evaluation.confusion, [[1, 0, 1], [1, 1, 0], [0, 1, 0]])
    assert evaluation.accuracy == pytest.approx(0.4)
    precision, recall, f1, images = evaluation.by_class
    np.testing.assert_allclose(precision, [1 / 2, 1 / 2, 0])
    np.testing.assert_allclose(recall, [1 / 2, 1 / 2, 0])
    np.testing.assert_allclose(f1, [1 / 2, 1 / 2, 0])
    np.testing.assert_array_equal(images, [2, 2, 1])
    assert evaluation.macro_f1 == pytest.approx(1 / 3)


def test_precision_and_recall_are_not_swapped() -> None:
    outputs = np.eye(2, dtype=np.float32)[[0, 0, 0, 1]]  # (4, 2)
    precision, recall, f1, _ = Evaluation(0.0, outputs, np.array([0, 1, 1, 1])).by_class
    np.testing.assert_allclose(precision, [1 / 3, 1])
    np.testing.assert_allclose(recall, [1, 1 / 3])
    np.testing.assert_allclose(f1, [1 / 2, 1 / 2])


def test_top_k_accuracy_matches_values_computed_by_hand() -> None:
    evaluation = Evaluation(1.0, OUTPUTS, LABELS)
    assert evaluation.top(1) == evaluation.accuracy
    assert evaluation.top(2) == 1.0
    assert Evaluation(1.0, OUTPUTS[:, ::-1], LABELS).top(1) == pytest.approx(0.6)  # of equal outputs, the first


def test_macro_f1_leaves_out_classes_without_images() -> None:
    outputs = np.eye(3, dtype=np.float32)[[0, 1, 1]]  # (3, 3)
    evaluation = Evaluation(0.0, outputs, np.array([0, 1, 0]))
    assert math.isnan(evaluation.by_class.recall[2]) and math.isnan(evaluation.by_class.precision[2])
    assert evaluation.macro_f1 == pytest.approx(2 / 3)


def test_evaluation_without_images_has_accuracy_0_and_no_f1() -> None:
    evaluation = Evaluation(0.0, np.empty((0, 3), np.float32), np.empty(0, np.int64))
    assert evaluation.accuracy == 0.0 and evaluation.top(1) == 0.0 and math.isnan(evaluation.macro_f1)


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0)],
)
def test_wilson_interval_matches_published_values(right: int, rows: int, low: float, high: float) -> None:
    """Values of Newcombe (1998), table I, and a mirrored one."""
    assert wilson_interval(right / rows, rows) == pytest.approx((low, high), abs=1e-4)


def test_confidences_that_equal_the_accuracy_have_no_calibration_error() -> None:
    outputs = np.log(np.tile([0.75, 0.25], (8, 1)))  # (8, 2)
    labels = np.array([0, 0, 0, 1] * 2)  # (8,)
    assert reliability(outputs, labels).error == pytest.approx(0.0)
    assert reliability(outputs, 1 - labels).error == pytest.approx(0.5)


def test_errors_of_opposite_sign_in_two_bins_do_not_cancel() -> None:
    outputs = np.log(np.array([[0.88, 0.12]] * 2 + [[0.58, 0.42]] * 2))  # (4, 2)
    found = reliability(outputs, np.array([0, 1, 0, 0]), bins=10)
    assert found.error == pytest.approx((0.38 + 0.42) / 2)
    assert found.images.sum() == 4 and found.images[8] == 2 and found.images[5] == 2
    assert found.accuracy[8] == 0.5 and found.confidence[8] == pytest.approx(0.88)
    assert np.isnan(found.accuracy[0])
    assert reliability(np.zeros((3, 2)), np.array([0, 1, 0]), bins=2).images[0] == 3  # 0.5: upper ends are included


def test_confidence_with_a_temperature_per_row_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = np.random.default_rng(0).normal(size=(11, 4)) * 3  # (11, 4)
    temperatures = np.linspace(0.5, 3.0, 11)  # (11,)
    expected = [softmax(row[None] / each).max() for row, each in zip(outputs, temperatures, strict=True)]
    monkeypatch.setattr("cnn.evaluation.calibration._BLOCK", 4)
    np.testing.assert_allclose(confidence(outputs, temperatures), expected)
    np.testing.assert_allclose(confidence(outputs), softmax(outputs).max(axis=1))


def drawn(rows: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (rows, 4) that are `temperature` times too large for the labels (rows,) drawn from them."""
    generator = np.random.default_rng(3)
    true = generator.normal(0, 2, (rows, 4))  # (rows, 4)
    probabilities = softmax(true)
    labels = (probabilities.cumsum(axis=1) < generator.random((rows, 1))).sum(axis=1)  # (rows,)
    return (true * temperature).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_calibration_finds_the_temperature(temperature: float) -> None:
    outputs, labels = drawn(8_000, temperature)
    found = calibrate(outputs, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.error_scaled < 0.025
    assert found.error > 0.1 or temperature == 1.0
    assert found.error == pytest.approx(reliability(outputs, labels).error)


def test_the_temperature_minimises_the_cross_entropy() -> None:
    outputs, labels = drawn(500, 2.0)
    best = fit_temperature(outputs, labels)

    def cross_entropy(temperature: float) -> float:
        return float(-np.log(softmax(outputs / temperature)[np.arange(500), labels]).mean())

    assert cross_entropy(best) < min(cross_entropy(best * 1.02), cross_entropy(best / 1.02))


def test_each_half_is_scaled_with_the_temperature_of_the_other() -> None:
    """The halves need different temperatures: scaled with its own, each would have no error."""
    outputs, labels = drawn(4_000, 1.0)
    outputs[::2] *= 4.0
    assert calibrate(outputs, labels).error_scaled > 0.1


def test_the_temperature_is_bounded_where_all_or_no_predictions_are_correct() -> None:
    outputs = np.tile(np.eye(3, dtype=np.float32) * 2.0, (10, 1))  # (30, 3)
    right = np.tile(np.arange(3), 10)  # (30,)
    assert 0.3 < fit_temperature(outputs, right) < 0.9
    assert softmax(outputs / fit_temperature(outputs, right)).max() == pytest.approx(1 - 2 / 3 / 31, abs=1e-3)
    assert 10.0 < fit_temperature(outputs, (right + 1) % 3) < 60.0
    assert fit_temperature(np.empty((0, 3), np.float32), np.empty(0, np.int64)) == 1.0
