"""Optimizers, against their textbook formulas worked out by hand, and learning-rate schedules."""

import math

import numpy as np
import pytest

from cnn.arena import Arena, Spec
from cnn.backends.reference import ReferenceBackend
from cnn.errors import RecipeError
from cnn.initialise import zeros
from cnn.training.optimizers import SGD, AdamW
from cnn.training.schedules import SCHEDULES, Constant, Cosine, Step, Triangular

REFERENCE = ReferenceBackend()
GOOD = np.array([1.0, 1.0, 0.0, 0.0])  # (4,), the outcome of a finite step without clipping


def _one_weight(optimizer: SGD | AdamW, gradients: list[float]) -> float:
    arena = Arena([Spec("weight", (1,), lambda shape, key: np.ones(shape), decay=True)], REFERENCE, np.float64)
    arena.initialise(lambda name: 0)
    slots = {name: np.zeros(1) for name in optimizer.slots}
    for step, gradient in enumerate(gradients, start=1):
        optimizer.update(REFERENCE, arena, np.array([gradient]), slots, GOOD, optimizer.lr, step)
    return float(arena.flat[0])


def test_sgd_matches_values_computed_by_hand() -> None:
    assert _one_weight(SGD(0.1, 0.0, False, 0.0), [2.0]) == pytest.approx(0.8)
    assert _one_weight(SGD(0.1, 0.9, False, 0.0), [1.0, 1.0]) == pytest.approx(1 - 0.1 - 0.19)
    assert _one_weight(SGD(0.1, 0.9, True, 0.0), [1.0]) == pytest.approx(1 - 0.19)
    assert _one_weight(SGD(0.1, 0.0, False, 0.5), [0.0]) == pytest.approx(0.95)


def test_decoupled_sgd_matches_values_computed_by_hand() -> None:
    # With momentum 0.5, the learning rate is divided by 3, and Nesterov's first step is 1.5 times the gradient.
    assert _one_weight(SGD(0.6, 0.5, True, 0.0, True), [1.0]) == pytest.approx(1 - 0.2 * 1.5)
    for lr in (0.6, 1.2):
        assert _one_weight(SGD(lr, 0.0, False, 0.5, True), [0.0]) == pytest.approx(1 - 0.25)
    assert _one_weight(SGD(0.0, 0.5, True, 0.5, True), [1.0]) == 1.0


@pytest.mark.parametrize(
    "optimizer", [SGD(0.01, 0.0, False, 0.5), SGD(0.01, 0.0, False, 0.5, True), AdamW(0.01, weight_decay=0.5)]
)
def test_lr_factor_multiplies_the_step_but_not_the_decay(optimizer: SGD | AdamW) -> None:
    weights, decays = [], []
    for factor in (1.0, 8.0):
        start = lambda shape, key: np.ones(shape)  # noqa: E731
        arena = Arena([Spec("weight", (1,), start, True, factor)], REFERENCE, np.float64)
        for gradient, ends in ((1.0, weights), (0.0, decays)):
            arena.initialise(lambda name: 0)
            slots = {name: np.zeros(1) for name in optimizer.slots}
            optimizer.update(REFERENCE, arena, np.array([gradient]), slots, GOOD, optimizer.lr, 1)
            ends.append(float(arena.flat[0]))
    assert decays[0] == pytest.approx(decays[1]) and decays[0] < 1
    assert decays[1] - weights[1] == pytest.approx(8 * (decays[0] - weights[0]))


@pytest.mark.parametrize("optimizer", [SGD(0.1), AdamW(0.1)])
def test_parameters_freeze_at_trained_until(optimizer: SGD | AdamW) -> None:
    specs = [Spec(name, (1,), zeros, True, trained_until=until) for name, until in (("a", 1.0), ("b", 0.5), ("c", 0.0))]
    arena = Arena(specs, REFERENCE, np.float64)
    slots = {name: np.zeros(3) for name in optimizer.slots}
    moved = []
    for step, progress in ((1, 0.4), (2, 0.5)):
        before = arena.flat.copy()
        optimizer.update(REFERENCE, arena, np.ones(3), slots, GOOD, optimizer.lr, step, progress)
        moved.append((arena.flat != before).tolist())
    assert moved == [[True, True, False], [True, False, False]]


def test_adamw_matches_values_computed_by_hand() -> None:
    # The first step is lr times the gradient's sign; the decay is decoupled from the gradient.
    assert _one_weight(AdamW(0.1, weight_decay=0.0), [123.0]) == pytest.approx(0.9)
    assert _one_weight(AdamW(0.1, weight_decay=0.5), [0.0]) == pytest.approx(0.95)


def test_invalid_hyperparameters_are_refused() -> None:
    with pytest.raises(RecipeError, match="lr: expected a number of 0 or more, found nan"):
        SGD(lr=math.nan)
    with pytest.raises(RecipeError, match="beta1: expected a number of 0 or more and less than 1"):
        AdamW(beta1=1.0)
    with pytest.raises(RecipeError, match=r"lr: expected a number of 0 or more, found '0\.1'"):
        SGD(lr="0.1")  # type: ignore[arg-type]


# Schedules


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_warms_up_and_stays_within_bounds(name: str) -> None:
    factors = [SCHEDULES[name](warmup=0.1).factor(step, 200) for step in range(200)]  # type: ignore[call-arg]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors[:20] == sorted(factors[:20]) and factors[0] == pytest.approx(0.5 / 20)
    assert factors[20] == pytest.approx(1.0)


def test_schedules_have_their_textbook_values() -> None:
    assert Constant().factor(99, 100) == 1.0
    assert [Step(0.0, (0.5, 0.75), 0.1).factor(step, 100) for step in (0, 49, 50, 75)] == pytest.approx(
        [1.0, 1.0, 0.1, 0.01]
    )
    assert Cosine(0.0, 0.1).factor(50, 100) == pytest.approx(0.55)
    assert Cosine(0.0).factor(100, 100) == pytest.approx(0.0)
    assert Triangular(0.5, 0.2).factor(75, 100) == pytest.approx(0.6)
    climbing = Triangular(0.5, 0.0, 0.2)
    assert [climbing.factor(step, 100) for step in (0, 25, 50)] == pytest.approx([0.208, 0.608, 1.0])
    with pytest.raises(RecipeError, match=r"warmup: expected a number of 0 or more and less than 1, found 1\.5"):
        Cosine(warmup=1.5)
