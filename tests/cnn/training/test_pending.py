"""Training steps that are started without waiting for them, and steps that are not finite."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from cnn.backends.base import OK, Array, Backend
from cnn.errors import NonFiniteError
from cnn.losses import LossResult, SoftmaxCrossEntropy
from cnn.training.averaging import EMA, Lookahead
from cnn.training.optimizers import SGD, AdamW, Optimizer
from cnn.training.pending import PendingBatch
from cnn.training.trainer import Trainer
from tests.cnn.oracles import BACKENDS, to_device
from tests.cnn.tiny_task import batch_size, draw_images, make_trainer, train

IMAGES, LABELS = draw_images(200, 0)
OPTIMIZERS = (SGD(0.05), AdamW(1e-3))


@dataclass(frozen=True)
class Poisoned(SoftmaxCrossEntropy):
    """A loss that is `loss`, with `gradient` as one entry of its gradient, the next times that `left` says so."""

    loss: float = 1.0
    gradient: float = 0.0
    left: list[bool] = field(default_factory=list)

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> LossResult:
        result = super().forward(backend, outputs, targets, denominator)
        if not self.left or not self.left.pop(0):
            return result
        result.gradient[3, 1] = self.gradient
        return result._replace(loss=result.loss * 0 + self.loss)


POISONS = {
    "inf loss": Poisoned(loss=math.inf), "nan loss": Poisoned(loss=math.nan, gradient=math.nan),
    "nan gradient": Poisoned(gradient=math.nan), "inf gradient": Poisoned(gradient=math.inf),
}  # fmt: skip

# On the GPU one case, since tests run its kernels slowly; test_optimizers.py has the others.
FAILURES = [
    *((backend, optimizer, poison) for backend in BACKENDS[:2] for optimizer in OPTIMIZERS for poison in POISONS),
    *(pytest.param(*backend.values, AdamW(1e-3), "nan gradient", marks=backend.marks) for backend in BACKENDS[2:]),
]


def start(trainer: Trainer) -> PendingBatch:
    size = batch_size(trainer.backend)
    rows = np.arange(trainer.step * size, trainer.step * size + size) % 200
    return trainer.start_batch(IMAGES[rows], LABELS[rows], rows)


def vectors(trainer: Trainer) -> dict[str, np.ndarray]:
    """Copies of everything that a step changes, but for the running statistics, which change in its forward pass."""
    slots = {name: trainer.backend.to_host(values) for name, values in trainer.slots.items()}
    return slots | {"weights": trainer.backend.to_host(trainer.network.parameters.flat)}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], but: tuple[str, ...] = ()) -> None:
    for name in one.keys() - set(but):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pending_steps_have_the_results_of_single_ones(backend: str) -> None:
    changes = {"lookahead": Lookahead(every=2, start=0.0), "ema": EMA(0.2), "clip": 0.5}
    one, other = make_trainer(backend, **changes), make_trainer(backend, **changes)
    losses = train(one, 7)
    started = [start(other), start(other)]
    results = []
    for _ in range(5):
        results.append(started[-2].result())
        started.append(start(other))
    assert started[-1].result() == started[-1].result()
    results += [started[-2].result(), started[-1].result()]
    assert [result.loss_sum / batch_size(one.backend) for result in results] == losses
    assert other.step == 7 and [batch.step for batch in started] == list(range(7))
    assert_same(vectors(one), vectors(other))


@pytest.mark.parametrize(("backend", "optimizer", "poison"), FAILURES)
def test_a_step_that_is_not_finite_and_those_after_it_change_nothing(
    backend: str, optimizer: Optimizer, poison: str
) -> None:
    changes = {"optimizer": optimizer, "lookahead": Lookahead(every=2, start=0.0), "ema": EMA(0.2), "clip": 0.5}
    loss = POISONS[poison]
    loss.left[:] = [False, False, True]
    trainer, sound = make_trainer(backend, loss=loss, **changes), make_trainer(backend, **changes)
    train(trainer, 2)
    train(sound, 2)
    before = vectors(trainer)
    assert_same(before, vectors(sound))
    bad, next_one = start(trainer), start(trainer)
    assert trainer.step == 4
    assert_same(before, vectors(trainer))
    culprit = poison.split()[1]
    for batch in (next_one, bad, bad):  # in any order, and again: the step that failed first is named
        with pytest.raises(NonFiniteError, match=f"the {culprit} is not finite at step 3 of 42 .learning rate .* --lr"):
            batch.result()
    assert trainer.step == 2
    assert_same(before, vectors(trainer))

    # Usable again: the weights are those of a training without the failed step. Only running statistics differ.
    assert train(trainer, 4) == train(sound, 4)
    assert_same(vectors(trainer), vectors(sound), but=("ema_state", "average_state"))


def test_a_step_that_is_not_finite_does_not_begin_the_average() -> None:
    """As in a training resumed with fewer epochs, whose average begins at the first step that is due."""
    late = make_trainer(lookahead=Lookahead(every=2, start=0.9))
    train(late, 4)
    loss = Poisoned(loss=math.nan, left=[False, True])
    trainer = make_trainer(lookahead=Lookahead(every=2, start=0.0), loss=loss)
    trainer.load_tensors(late.tensors(), 4)
    train(trainer, 1)
    with pytest.raises(NonFiniteError):
        train(trainer, 1)
    assert trainer.step == 5 and not trainer.slots["average"].any()
    train(trainer, 1)
    np.testing.assert_array_equal(trainer.slots["average"], trainer.network.parameters.flat)


def test_a_third_step_waits_for_the_first() -> None:
    trainer = make_trainer(loss=Poisoned(loss=math.inf, left=[True]))
    started = [start(trainer), start(trainer)]
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 1 of 42"):
        start(trainer)
    assert trainer.step == 0 and all(isinstance(batch.settled, NonFiniteError) for batch in started)
    assert math.isfinite(start(trainer).result().loss_sum)


def test_pending_steps_are_done_before_other_weights_are_loaded() -> None:
    trainer, other = make_trainer(), make_trainer()
    train(other, 3)
    pending = start(trainer)
    trainer.load_tensors(other.tensors(), 3)
    assert trainer.step == 3 and math.isfinite(pending.result().loss_sum)
    assert train(trainer, 2) == train(other, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_of_a_failed_step_write_nothing(backend: str) -> None:
    device = make_trainer(backend).backend
    outcome = to_device(device, np.array([1.0, 1.0, 0.0, 0.0]))  # (4,)

    def outcome_of(loss: float, correct: int, gradient: list[float], clip: float) -> list[float]:
        arrays = (np.float32(loss), np.int64(correct), np.array(gradient, np.float32))  # (), (), (size,)
        device.judge_step(outcome, *(to_device(device, np.asarray(array)) for array in arrays), clip)
        return device.to_host(outcome).tolist()

    assert outcome_of(2.0, 3, [3.0, 4.0], 1.0) == [1.0, 0.2, 2.0, 3.0]
    assert outcome_of(math.inf, 1, [0.0] * 40, 1.0) == [0.0, 1.0, math.inf, 1.0]
    assert outcome_of(5.0, 2, [1.0] * 40, 0.0) == [0.0, 1.0, 5.0, 2.0]  # it stays failed
    start = np.random.default_rng(0).random((4, 40)).astype(np.float32)  # (4, 40)
    weights, gradient, first, second = (to_device(device, vector.copy()) for vector in start)  # (40,) each
    device.sgd_step(weights, gradient, first, 20, outcome, 0.1, 0.9, True, 0.1)
    device.adamw_step(weights, gradient, first, second, 20, outcome, 0.1, 0.9, 0.99, 1e-8, 0.1, 1)
    device.average(first, gradient, 0.5, outcome)
    device.copy(second, gradient, outcome)
    for vector, values in zip((weights, gradient, first, second), start, strict=True):
        np.testing.assert_array_equal(device.to_host(vector), values)
    outcome[OK] = 1.0
    device.average(first, gradient, 0.5, outcome)
    device.copy(second, gradient, outcome)
    np.testing.assert_allclose(device.to_host(first), (start[2] + start[1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(device.to_host(second), start[1])
