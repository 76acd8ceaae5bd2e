"""The training step, evaluation, checkpoints and prediction together."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cnn.backends import pick_backend
from cnn.checkpoint import ModelCard, initialise_from, load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError, NetworkError, NonFiniteError, RecipeError, UnknownNameError, WriteError
from cnn.inference.folded import FoldedNetwork
from cnn.inference.predictor import Predictor
from cnn.inference.tta import tta_outputs
from cnn.inputs.augment import Augment
from cnn.layers import Whitening
from cnn.losses import SoftmaxCrossEntropy
from cnn.models import Airbench94, Plain
from cnn.network import Network
from cnn.training.averaging import EMA, Lookahead
from cnn.training.optimizers import SGD, AdamW
from cnn.training.recipe import Recipe
from cnn.training.schedules import Constant
from cnn.training.trainer import Trainer

MEAN, STD = (110.0, 120.0, 130.0), (60.0, 61.0, 62.0)
SHAPE = (12, 12, 3)
CARD = ModelCard("plain", {"width": 8}, SHAPE, ("dot", "stripe", "frame"), "pad", MEAN, STD)


def three_kinds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of three easy kinds: uint8 (count, 12, 12, 3) and class numbers (count,)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    images = generator.integers(0, 120, (count, *SHAPE))
    for image, label in zip(images, labels, strict=True):
        i, j = generator.integers(2, 8, 2)
        spots = {0: np.s_[i : i + 3, j : j + 3], 1: np.s_[:, j : j + 2], 2: np.s_[:: 11, :]}
        image[spots[int(label)]] += 120
    return images.astype(np.uint8), labels


def recipe(**changes: object) -> Recipe:
    values = {
        "model": Plain(width=8), "optimizer": AdamW(5e-3), "epochs": 6, "batch_size": 32,
        "augment": Augment(crop_scale=1.0, shift=0.1),
    }  # fmt: skip
    return Recipe(**(values | changes))  # type: ignore[arg-type]


def trainer(backend: str = "cpu", **changes: object) -> Trainer:
    wanted = recipe(**changes)
    network = Network(wanted.model.layers(SHAPE, 3), SHAPE, pick_backend(backend), seed=1)
    return Trainer(network, wanted, np.array(MEAN), np.array(STD), train_rows=200)


def train(one: Trainer, steps: int) -> list[float]:
    images, labels = three_kinds(200, 0)
    losses = []
    for _ in range(steps):
        rows = np.arange(one.step * 32, one.step * 32 + 32) % 200
        losses.append(one.train_batch(images[rows], labels[rows], rows).loss_sum / 32)
    return losses


def test_a_network_learns_and_is_evaluated() -> None:
    one = trainer()
    train(one, 42)
    images, labels = three_kinds(100, 1)
    evaluation = one.evaluate([(images[:64], labels[:64]), (images[64:], labels[64:])])
    assert evaluation.rows == 100 and evaluation.accuracy > 0.9
    np.testing.assert_array_equal(evaluation.confusion.sum(axis=1), np.bincount(labels))


def test_backends_take_the_same_way() -> None:
    np.testing.assert_allclose(train(trainer("cpu"), 10), train(trainer("reference"), 10), rtol=2e-3)


SPEED_RUN: dict[str, object] = {
    "model": Airbench94(width=4), "optimizer": SGD(2.0, 0.85, True, 0.0153, True), "batch_size": 40, "epochs": 2,
    "augment": Augment("alternate", 0.1, 1.0), "lookahead": Lookahead(every=2, start=0.1),
}  # fmt: skip


@pytest.mark.parametrize("changes", [{"optimizer": SGD(0.05)}, {"optimizer": AdamW(1e-3)}, SPEED_RUN])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_training_is_bit_identical(changes: dict[str, object], stop: int, tmp_path: Path) -> None:
    straight = trainer(**changes)
    train(straight, 8)

    first = trainer(**changes)
    train(first, stop)
    save_checkpoint(tmp_path / "last.safetensors", CARD, first.tensors(), {"step": first.step})
    saved = load_checkpoint(tmp_path / "last.safetensors")
    second = trainer(**changes)
    second.load_tensors(saved.tensors, saved.progress["step"])
    train(second, 8 - stop)
    for name, tensor in straight.tensors().items():
        assert tensor.tobytes() == second.tensors()[name].tobytes(), name


def test_resuming_with_another_optimizer_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"optimizer\.velocity: expected .* the recipe that the run began with"):
        trainer(optimizer=SGD()).load_tensors(trainer().tensors(), 0)


def test_divergence_is_an_error_and_leaves_the_weights_finite() -> None:
    one = trainer(optimizer=SGD(1e20, weight_decay=0.0), schedule=Constant())
    with pytest.raises(NonFiniteError, match=r"not finite at step \d+ of 42 .* lower --lr"):
        train(one, 42)
    assert all(np.isfinite(tensor).all() for name, tensor in one.tensors().items() if "weight" in name)


def test_lookahead_that_is_behind_its_beginning_begins_at_once() -> None:
    """As in a training that goes on with fewer epochs than it began with: the average would be of nothing."""
    one = trainer(lookahead=Lookahead(every=2, start=0.9), epochs=6)
    train(one, 20)
    fewer = trainer(lookahead=Lookahead(every=2, start=0.1), epochs=6)
    fewer.load_tensors(one.tensors(), one.step)
    before = float(np.linalg.norm(fewer.network.parameters.flat))
    train(fewer, 4)
    assert float(np.linalg.norm(fewer.network.parameters.flat)) > 0.9 * before


def test_the_moving_average_is_judged_and_kept_while_training_goes_on_without() -> None:
    one, plain = trainer(ema=EMA(horizon=0.1), epochs=2), trainer(epochs=2)  # 14 steps: it reaches back 1.4
    assert plain.eval_network is plain.network
    weights, states = [], []
    for _ in range(4):
        assert train(one, 1) == train(plain, 1)
        weights.append(one.network.parameters.flat.copy())  # (size,)
        states.append(one.network.state.flat.copy())
    for found, seen in ((one.eval_network.parameters.flat, weights), (one.eval_network.state.flat, states)):
        average = seen[0]
        for later in seen[1:]:
            average = average + (later - average) / 1.4
        np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-6)
    images, labels = three_kinds(40, 1)
    evaluated = one.evaluate([(images, labels)]).outputs
    assert not np.allclose(evaluated, plain.evaluate([(images, labels)]).outputs, atol=1e-4)
    expected = tta_outputs(one.backend, FoldedNetwork(one.eval_network), images, "none", one.mean, one.std)
    np.testing.assert_array_equal(evaluated, expected)

    again = trainer(ema=EMA(horizon=0.1), epochs=2)
    again.load_tensors(one.tensors(), one.step)
    assert train(again, 3) == train(one, 3)
    for name, tensor in one.eval_network.tensors().items():
        np.testing.assert_array_equal(again.eval_network.tensors()[name], tensor)


def test_balanced_weights_let_each_class_count_alike() -> None:
    asked, none = SoftmaxCrossEntropy(class_weights="balanced"), SoftmaxCrossEntropy()
    loss = asked.balanced(np.array([6, 0, 2]))
    assert loss.class_weights == pytest.approx((8 / 12, 0, 8 / 4))
    assert loss.balanced(np.array([1, 1, 1])) is loss and none.balanced(np.array([3, 1])) is none
    with pytest.raises(RecipeError, match="class_weights: expected numbers, found 'balanced'"):
        asked.forward(pick_backend("reference"), np.zeros((1, 2)), np.zeros(1, int), 1)


def test_the_moving_average_begins_as_a_mean_of_all() -> None:
    kept = [EMA(0.5).decay_at(step, 8) for step in (1, 2, 3, 4, 8)]
    assert kept == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4, 3 / 4])
    assert EMA(0.01).decay_at(1, 10) == EMA(0.01).decay_at(10, 10) == 0.0
    with pytest.raises(RecipeError, match=r"ema horizon: expected 0 to 1, found 2"):
        EMA(2.0)


def test_lookahead_brings_weights_and_state_back_to_their_average() -> None:
    """Followed by hand: the average starts after step 2, joins after 4 and 6, and is returned to after epoch 1."""
    one = trainer(**SPEED_RUN)
    network, total, average = one.network, 10, np.zeros(0)
    update = SGD.update

    def now() -> np.ndarray:
        return np.concatenate([network.parameters.flat, network.state.flat])

    for step in range(1, 8):
        ran: list[np.ndarray] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SGD, "update", lambda *given: (update(*given), ran.append(now())))  # noqa: B023
            train(one, 1)
        if step == 2:
            average = ran[0]
        elif step in (4, 6):
            kept = 0.95**2 * (step / total) ** 3
            average = kept * average + (1 - kept) * ran[0]
        np.testing.assert_allclose(now(), average if step in (2, 4, 5, 6) else ran[0], rtol=1e-5, atol=1e-7)
    assert np.abs(one.slots["average_state"]).max() > 0


def test_what_is_frozen_stays_and_a_bias_stops_on_time() -> None:
    one = trainer(**(SPEED_RUN | {"lookahead": Lookahead()}))
    one.initialise_from_images(three_kinds(50, 3)[0])
    before = one.network.tensors()
    train(one, 3)  # of 10
    third = one.network.tensors()
    assert (third["whiten.bias"] != before["whiten.bias"]).any()
    train(one, 3)
    after = one.network.tensors()
    for name in before:
        changed = (after[name] != before[name]).any()
        assert changed != (name == "whiten.weight" or name.endswith("scale")), name
    np.testing.assert_array_equal(after["whiten.bias"], third["whiten.bias"])
    assert (after["group1.norm1.scale"] == 1.0).all()


def test_what_is_frozen_does_not_count_in_the_gradients_norm() -> None:
    one = trainer(**(SPEED_RUN | {"optimizer": SGD(1.0, 0.0, False, 0.0), "clip": 1e-3, "schedule": Constant()}))
    one.network.parameters.views["group1.norm1.scale"][...] = 1e-3  # so that its gradient is large
    before = one.network.parameters.flat.copy()
    factors = np.ones(len(before))
    for group in one.network.parameters.groups:
        factors[group.span] = group.lr_factor
    train(one, 1)
    assert np.linalg.norm((one.network.parameters.flat - before) / factors) == pytest.approx(1e-3, rel=1e-2)


def test_whitening_is_measured_as_images_are_trained_on() -> None:
    one, images = trainer(**SPEED_RUN), three_kinds(60, 4)[0]
    one.initialise_from_images(images)
    x = (images - np.array(MEAN)) / np.array(STD)
    expected = Whitening(24).parameters_from_images(x)["weight"]
    np.testing.assert_allclose(one.network.tensors()["whiten.weight"], expected, rtol=1e-4, atol=1e-5)


def test_flips_by_turns_show_both_sides_in_two_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"augment": Augment("alternate", 0.0, 1.0), "batch_size": 50}  # 4 steps an epoch
    one, images = trainer(**(SPEED_RUN | changes)), three_kinds(200, 0)[0]
    seen: list[np.ndarray] = []
    forward = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, run, x: (seen.append(x), forward(self, run, x))[1])
    for step in range(8):
        rows = np.arange(50) + 50 * (step % 4)
        one.train_batch(images[rows], np.zeros(50, np.int64), rows)
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])  # (200, 12, 12, 3)
    np.testing.assert_array_equal(first, second[:, :, ::-1])
    plain = ((images - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    assert 70 < np.isclose(first, plain, atol=1e-4).all(axis=(1, 2, 3)).sum() < 130


def test_several_views_are_averaged_before_they_are_judged() -> None:
    one = trainer()
    train(one, 10)
    images, labels = three_kinds(40, 5)
    alone = one.evaluate([(images, labels)])
    assert alone.loss == one.evaluate([(images, labels)], "none").loss
    infer = FoldedNetwork(one.network)
    x = ((images - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    outputs = (infer(x) + infer(np.ascontiguousarray(x[:, :, ::-1]))) / 2
    loss, _ = one.recipe.loss.forward(one.backend, outputs, labels, 40)
    mirrored = one.evaluate([(images, labels)], "mirror")
    assert mirrored.loss == pytest.approx(float(loss), rel=1e-4)
    assert mirrored.loss != pytest.approx(alone.loss, rel=1e-3)
    assert mirrored.accuracy == (outputs.argmax(axis=1) == labels).mean()
    assert one.evaluate([(images, labels)], "mirror_shift").loss != pytest.approx(mirrored.loss, rel=1e-4)
    with pytest.raises(UnknownNameError, match="no views is called 'mirorr'; did you mean 'mirror'"):
        recipe(views="mirorr")


def test_clipping_bounds_the_step() -> None:
    one = trainer(optimizer=SGD(1.0, 0.0, False, 0.0), schedule=Constant(), clip=1e-3)
    before = one.network.parameters.flat.copy()
    train(one, 1)
    assert np.linalg.norm(one.network.parameters.flat - before) == pytest.approx(1e-3, rel=1e-3)


def test_a_channel_that_never_varies_is_not_divided_by_zero() -> None:
    network = CARD.build_network(pick_backend("cpu"), seed=1)
    grey = Trainer(network, recipe(), np.array(MEAN), np.zeros(3), train_rows=32)
    assert np.isfinite(grey.train_batch(*three_kinds(32, 0), np.arange(32)).loss_sum)


# Model files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    one = trainer()
    train(one, 4)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, CARD, one.network.tensors(), {"epoch": 1})
    return path


def test_a_model_file_needs_nothing_else(model: Path) -> None:
    predictor = Predictor(model, pick_backend("cpu"))
    assert predictor.card == CARD and load_checkpoint(model).progress == {"epoch": 1}
    probabilities = predictor.probabilities(three_kinds(5, 2)[0])
    assert probabilities.shape == (5, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_missing_truncated_and_foreign_files_are_explained(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    bad = tmp_path / "bad.safetensors"
    with pytest.raises(ModelFileError, match="no model file at"):
        load_checkpoint(bad)
    for content in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1], b"GIF89a" + bytes(100)):
        bad.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"bad\.safetensors is not a complete model file .* copy it again"):
            load_checkpoint(bad)
    safetensors.numpy.save_file({"weight": np.zeros(3)}, bad)
    with pytest.raises(ModelFileError, match="not logpose's"):
        load_checkpoint(bad)
    bad.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    with pytest.raises(ModelFileError, match="damaged: its tensors do not match"):
        load_checkpoint(bad)
    safetensors.numpy.save_file({}, bad, {"logpose": json.dumps({"format_version": 99})})
    with pytest.raises(ModelFileError, match="model format 99, this logpose reads 1"):
        load_checkpoint(bad)
    safetensors.numpy.save_file({}, bad, {"logpose": "{"})
    with pytest.raises(ModelFileError, match="damaged header"):
        load_checkpoint(bad)


def test_a_parameter_that_does_not_fit_is_named(model: Path) -> None:
    saved = load_checkpoint(model)
    saved.tensors["conv1a.conv.weight"] = np.zeros((3, 3, 3, 9), np.float32)
    words = r"conv1a\.conv\.weight: expected shape \(3, 3, 3, 8\), found \(3, 3, 3, 9\)"
    with pytest.raises(ModelFileError, match=words):
        saved.load_into(CARD.build_network(pick_backend("cpu")))


def test_starting_from_a_model_replaces_the_head_for_other_classes(model: Path) -> None:
    saved = load_checkpoint(model)
    same = CARD.build_network(pick_backend("cpu"), seed=5)
    assert initialise_from(same, CARD, saved) == []
    np.testing.assert_array_equal(same.tensors()["head.weight"], saved.tensors["head.weight"])

    other = ModelCard("plain", {"width": 8}, SHAPE, ("cat", "dog"), "pad", MEAN, STD)
    fresh = other.build_network(pick_backend("cpu"), seed=5)
    head = fresh.tensors()["head.weight"]
    (note,) = initialise_from(fresh, other, saved)
    assert "new classifier head" in note and "3 classes" in note
    np.testing.assert_array_equal(fresh.tensors()["head.weight"], head)
    np.testing.assert_array_equal(fresh.tensors()["conv1a.conv.weight"], saved.tensors["conv1a.conv.weight"])

    foreign = ModelCard("seed", {}, SHAPE, CARD.class_names, "pad", MEAN, STD)
    with pytest.raises(NetworkError, match="is a plain, not a seed; use --model plain"):
        initialise_from(foreign.build_network(pick_backend("cpu")), foreign, saved)


def test_a_full_disk_leaves_the_old_file_whole(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match=r"No space left on device; free some space and run again with --resume"):
        save_checkpoint(model, CARD, {}, {})
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir()] == ["model.safetensors"]
