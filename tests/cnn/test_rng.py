"""Counter-based random numbers."""

import numpy as np

from cnn.rng import key_of, normal, uniform


def test_a_row_has_the_same_draws_in_any_order() -> None:
    rows = np.array([5, 0, 123456789])
    draws = uniform(42, rows, 6)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(uniform(42, np.array([row]), 6)[0], draws[i])
    assert not np.array_equal(uniform(43, rows, 6), draws)


def test_draws_are_uniform_and_independent() -> None:
    draws = uniform(1, np.arange(20_000), 4).astype(np.float64)
    assert draws.min() >= 0.0 and draws.max() < 1.0
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.histogram(draws, 16, (0, 1))[0] / draws.size - 1 / 16).max() < 0.002
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < 0.03
    numbers = normal(3, 50_001)
    assert numbers.shape == (50_001,) and abs(numbers.mean()) < 0.02 and abs(numbers.std() - 1) < 0.02


def test_draws_do_not_change_between_versions() -> None:
    """A saved seed must give the same numbers in every release."""
    assert key_of(0, "augment", 1) == key_of("0", "augment", "1") == 11754942182748092211
    np.testing.assert_allclose(uniform(7, np.array([0, 1]), 2), [[0.5243, 0.3021], [0.7215, 0.6497]], atol=1e-4)
