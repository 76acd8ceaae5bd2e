"""Lookahead and the exponential moving average of the weights."""

import numpy as np
import pytest

from cnn.errors import RecipeError
from cnn.inference.folded import FoldedNetwork
from cnn.inference.tta import tta_outputs
from cnn.training.averaging import EMA, Lookahead
from cnn.training.optimizers import SGD
from tests.cnn.tiny_task import SPEED_RUN, draw_images, make_trainer, train


def test_lookahead_starts_at_a_multiple_and_its_decay_rises() -> None:
    ahead = Lookahead(every=5, start=0.3)
    assert [ahead.first_step(total) for total in (490, 476, 10, 3)] == [150, 145, 5, 5]
    assert ahead.decay_at(100, 100) == pytest.approx(0.95**5)
    assert ahead.decay_at(50, 100) == pytest.approx(0.95**5 / 8)
    with pytest.raises(RecipeError, match=r"lookahead decay: expected a number from 0 to 1, found 1\.5"):
        Lookahead(decay=1.5)


def test_lookahead_resumed_after_its_first_step_starts_at_once() -> None:
    """As in a training resumed with fewer epochs: without that, the average would be all zeros."""
    trainer = make_trainer(lookahead=Lookahead(every=2, start=0.9), epochs=6)
    train(trainer, 20)
    fewer = make_trainer(lookahead=Lookahead(every=2, start=0.1), epochs=6)
    fewer.load_tensors(trainer.tensors(), trainer.step)
    before = float(np.linalg.norm(fewer.network.parameters.flat))
    train(fewer, 4)
    assert float(np.linalg.norm(fewer.network.parameters.flat)) > 0.9 * before


def test_ema_is_evaluated_and_saved_while_training_continues_on_the_raw_weights() -> None:
    trainer = make_trainer(ema=EMA(horizon=0.1), epochs=2)  # 14 steps: a horizon of 1.4
    plain = make_trainer(epochs=2)
    assert plain.eval_network is plain.network
    weights, states = [], []
    for _ in range(4):
        assert train(trainer, 1) == train(plain, 1)
        weights.append(trainer.network.parameters.flat.copy())  # (size,)
        states.append(trainer.network.state.flat.copy())
    for found, seen in ((trainer.eval_network.parameters.flat, weights), (trainer.eval_network.state.flat, states)):
        average = seen[0]
        for later in seen[1:]:
            average = average + (later - average) / 1.4
        np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-6)
    images, labels = draw_images(40, 1)
    evaluated = trainer.evaluate([(images, labels)]).outputs
    assert not np.allclose(evaluated, plain.evaluate([(images, labels)]).outputs, atol=1e-4)
    infer = FoldedNetwork(trainer.eval_network)
    expected = tta_outputs(trainer.backend, infer, images, "none", trainer.mean, trainer.std)
    np.testing.assert_array_equal(evaluated, expected)

    again = make_trainer(ema=EMA(horizon=0.1), epochs=2)
    again.load_tensors(trainer.tensors(), trainer.step)
    assert train(again, 3) == train(trainer, 3)
    for name, tensor in trainer.eval_network.tensors().items():
        np.testing.assert_array_equal(again.eval_network.tensors()[name], tensor)


def test_ema_starts_as_the_mean_of_all_steps() -> None:
    decays = [EMA(0.5).decay_at(step, 8) for step in (1, 2, 3, 4, 8)]
    assert decays == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4, 3 / 4])
    assert EMA(0.01).decay_at(1, 10) == EMA(0.01).decay_at(10, 10) == 0.0
    with pytest.raises(RecipeError, match=r"ema horizon: expected a number from 0 to 1, found 2"):
        EMA(2.0)


def test_lookahead_resets_weights_and_state_to_their_average() -> None:
    """Computed by hand: the average starts after step 2, is updated after 4 and 6, and applied after epoch 1."""
    trainer = make_trainer(**SPEED_RUN)
    network, total, average = trainer.network, 10, np.zeros(0)
    update = SGD.update

    def now() -> np.ndarray:
        return np.concatenate([network.parameters.flat, network.state.flat])

    for step in range(1, 8):
        ran: list[np.ndarray] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SGD, "update", lambda *given: (update(*given), ran.append(now())))  # noqa: B023
            train(trainer, 1)
        if step == 2:
            average = ran[0]
        elif step in (4, 6):
            decay = 0.95**2 * (step / total) ** 3
            average = decay * average + (1 - decay) * ran[0]
        np.testing.assert_allclose(now(), average if step in (2, 4, 5, 6) else ran[0], rtol=1e-5, atol=1e-7)
    assert np.abs(trainer.slots["average_state"]).max() > 0
