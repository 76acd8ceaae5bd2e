"""The training step, evaluation, checkpoints and prediction together."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cnn.augment import Augment
from cnn.backend import pick_backend
from cnn.checkpoint import ModelCard, initialise_from, load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError, NetworkError, NonFiniteError, WriteError
from cnn.models import Plain
from cnn.optim import SGD, AdamW
from cnn.predict import Predictor
from cnn.schedules import Constant
from cnn.train import Recipe, Trainer

MEAN, STD = (110.0, 120.0, 130.0), (60.0, 61.0, 62.0)
SHAPE = (12, 12, 3)
CARD = ModelCard("plain", {"width": 8}, SHAPE, ("dot", "stripe", "frame"), "pad", MEAN, STD)


def three_kinds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of three easy kinds: uint8 (count, 12, 12, 3) and class numbers (count,)."""
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
    network = CARD.build_network(pick_backend(backend), seed=1)
    return Trainer(network, recipe(**changes), np.array(MEAN), np.array(STD), train_rows=200)


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


@pytest.mark.parametrize("optimizer", [SGD(0.05), AdamW(1e-3)])
def test_a_resumed_training_is_bit_identical(optimizer: SGD | AdamW, tmp_path: Path) -> None:
    straight = trainer(optimizer=optimizer)
    train(straight, 8)

    first = trainer(optimizer=optimizer)
    train(first, 3)
    save_checkpoint(tmp_path / "last.safetensors", CARD, first.tensors(), {"step": first.step})
    saved = load_checkpoint(tmp_path / "last.safetensors")
    second = trainer(optimizer=optimizer)
    second.load_tensors(saved.tensors, saved.progress["step"])
    train(second, 5)
    for name, tensor in straight.tensors().items():
        assert tensor.tobytes() == second.tensors()[name].tobytes(), name


def test_resuming_with_another_optimizer_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"optimizer\.velocity: expected .* the recipe that the run began with"):
        trainer(optimizer=SGD()).load_tensors(trainer().tensors(), 0)


def test_divergence_is_an_error_and_leaves_the_weights_finite() -> None:
    one = trainer(optimizer=SGD(1e20, weight_decay=0.0), schedule=Constant())
    with pytest.raises(NonFiniteError, match=r"no finite number at step \d+ of 42 .* lower --lr"):
        train(one, 42)
    assert all(np.isfinite(tensor).all() for name, tensor in one.tensors().items() if "weight" in name)


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
        with pytest.raises(ModelFileError, match=r"bad\.safetensors is not a whole model file .* copy it again"):
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
    assert "the head starts afresh" in note and "3 classes" in note
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
