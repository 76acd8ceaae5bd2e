"""The training step, evaluation and resuming."""

from pathlib import Path

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError, NonFiniteError
from cnn.inputs.augment import Augment
from cnn.layers import Whitening
from cnn.network import Network
from cnn.training.averaging import Lookahead
from cnn.training.optimizers import SGD, AdamW
from cnn.training.schedules import Constant
from cnn.training.trainer import Trainer
from tests.cnn.tiny_task import CARD, MEAN, SPEED_RUN, STD, draw_images, make_recipe, make_trainer, train


def test_a_network_learns_and_is_evaluated() -> None:
    trainer = make_trainer()
    train(trainer, 42)
    images, labels = draw_images(100, 1)
    evaluation = trainer.evaluate([(images[:64], labels[:64]), (images[64:], labels[64:])])
    assert evaluation.rows == 100 and evaluation.accuracy > 0.9
    np.testing.assert_array_equal(evaluation.confusion.sum(axis=1), np.bincount(labels))


def test_backends_have_the_same_losses() -> None:
    np.testing.assert_allclose(train(make_trainer("cpu"), 10), train(make_trainer("reference"), 10), rtol=2e-3)


@pytest.mark.parametrize("changes", [{"optimizer": SGD(0.05)}, {"optimizer": AdamW(1e-3)}, SPEED_RUN])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_training_is_bit_identical(changes: dict[str, object], stop: int, tmp_path: Path) -> None:
    straight = make_trainer(**changes)
    train(straight, 8)

    first = make_trainer(**changes)
    train(first, stop)
    save_checkpoint(tmp_path / "last.safetensors", CARD, first.tensors(), {"step": first.step})
    saved = load_checkpoint(tmp_path / "last.safetensors")
    second = make_trainer(**changes)
    second.load_tensors(saved.tensors, saved.progress["step"])
    train(second, 8 - stop)
    for name, tensor in straight.tensors().items():
        assert tensor.tobytes() == second.tensors()[name].tobytes(), name


def test_resuming_with_another_optimizer_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"optimizer\.velocity: expected .* the recipe that the run began with"):
        make_trainer(optimizer=SGD()).load_tensors(make_trainer().tensors(), 0)


def test_divergence_raises_and_leaves_the_weights_finite() -> None:
    trainer = make_trainer(optimizer=SGD(1e20, weight_decay=0.0), schedule=Constant())
    with pytest.raises(NonFiniteError, match=r"not finite at step \d+ of 42 .* lower --lr"):
        train(trainer, 42)
    assert all(np.isfinite(tensor).all() for name, tensor in trainer.tensors().items() if "weight" in name)


def test_frozen_parameters_do_not_change() -> None:
    trainer = make_trainer(**(SPEED_RUN | {"lookahead": Lookahead()}))
    trainer.initialise_from_images(draw_images(50, 3)[0])
    before = trainer.network.tensors()
    train(trainer, 3)  # of 10
    third = trainer.network.tensors()
    assert (third["whiten.bias"] != before["whiten.bias"]).any()
    train(trainer, 3)
    after = trainer.network.tensors()
    for name in before:
        changed = (after[name] != before[name]).any()
        assert changed != (name == "whiten.weight" or name.endswith("scale")), name
    np.testing.assert_array_equal(after["whiten.bias"], third["whiten.bias"])
    assert (after["group1.norm1.scale"] == 1.0).all()


def test_frozen_parameters_are_not_in_the_gradient_norm() -> None:
    changes = {"optimizer": SGD(1.0, 0.0, False, 0.0), "clip": 1e-3, "schedule": Constant()}
    trainer = make_trainer(**(SPEED_RUN | changes))
    trainer.network.parameters.views["group1.norm1.scale"][...] = 1e-3  # so that its gradient is large
    before = trainer.network.parameters.flat.copy()
    factors = np.ones(len(before))
    for group in trainer.network.parameters.groups:
        factors[group.span] = group.lr_factor
    train(trainer, 1)
    assert np.linalg.norm((trainer.network.parameters.flat - before) / factors) == pytest.approx(1e-3, rel=1e-2)


def test_whitening_is_computed_from_normalised_images() -> None:
    trainer, images = make_trainer(**SPEED_RUN), draw_images(60, 4)[0]
    trainer.initialise_from_images(images)
    x = (images - np.array(MEAN)) / np.array(STD)
    expected = Whitening(24).parameters_from_images(x)["weight"]
    np.testing.assert_allclose(trainer.network.tensors()["whiten.weight"], expected, rtol=1e-4, atol=1e-5)


def test_alternate_flips_show_both_versions_in_two_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"augment": Augment("alternate", 0.0, 1.0), "batch_size": 50}  # 4 steps an epoch
    trainer, images = make_trainer(**(SPEED_RUN | changes)), draw_images(200, 0)[0]
    seen: list[np.ndarray] = []
    forward = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, run, x, *s: (seen.append(x), forward(self, run, x, *s))[1])
    for step in range(8):
        rows = np.arange(50) + 50 * (step % 4)
        trainer.train_batch(images[rows], np.zeros(50, np.int64), rows)
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])  # (200, 12, 12, 3)
    np.testing.assert_array_equal(first, second[:, :, ::-1])
    plain = ((images - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    assert 70 < np.isclose(first, plain, atol=1e-4).all(axis=(1, 2, 3)).sum() < 130


def test_clipping_limits_the_step() -> None:
    trainer = make_trainer(optimizer=SGD(1.0, 0.0, False, 0.0), schedule=Constant(), clip=1e-3)
    before = trainer.network.parameters.flat.copy()
    train(trainer, 1)
    assert np.linalg.norm(trainer.network.parameters.flat - before) == pytest.approx(1e-3, rel=1e-3)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    network = CARD.build_network(pick_backend("cpu"), seed=1)
    grey = Trainer(network, make_recipe(), np.array(MEAN), np.zeros(3), train_rows=32)
    assert np.isfinite(grey.train_batch(*draw_images(32, 0), np.arange(32)).loss_sum)
