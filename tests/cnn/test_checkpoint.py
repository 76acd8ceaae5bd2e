"""Model files: saving, loading, damage, and initialising another training."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cnn.backends import pick_backend
from cnn.checkpoint import Checkpoint, ModelCard, initialise_from, load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError, NetworkError, WriteError
from cnn.inference.predictor import Predictor
from tests.cnn.tiny_task import CARD, MEAN, SHAPE, STD, draw_images, make_trainer, train


@pytest.fixture
def model(tmp_path: Path) -> Path:
    trainer = make_trainer()
    train(trainer, 4)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, CARD, trainer.network.tensors(), {"epoch": 1})
    return path


def test_prediction_needs_only_the_model_file(model: Path) -> None:
    predictor = Predictor(model, pick_backend("cpu"))
    assert predictor.card == CARD and load_checkpoint(model).progress == {"epoch": 1}
    probabilities = predictor.probabilities(draw_images(5, 2)[0])
    assert probabilities.shape == (5, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_missing_truncated_and_foreign_files_are_refused(model: Path, tmp_path: Path) -> None:
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
    with pytest.raises(ModelFileError, match="damaged: it does not match its checksum; copy it again"):
        load_checkpoint(bad)
    safetensors.numpy.save_file({}, bad, {"logpose": json.dumps({"format_version": 99})})
    with pytest.raises(ModelFileError, match="model format 99, this logpose reads 2"):
        load_checkpoint(bad)
    safetensors.numpy.save_file({}, bad, {"logpose": "{"})
    with pytest.raises(ModelFileError, match="damaged header"):
        load_checkpoint(bad)


def test_parameter_of_another_shape_is_named_in_the_error(model: Path) -> None:
    saved = load_checkpoint(model)
    saved.tensors["conv1a.conv.weight"] = np.zeros((3, 3, 3, 9), np.float32)
    message = r"conv1a\.conv\.weight: expected shape \(3, 3, 3, 8\), found \(3, 3, 3, 9\)"
    with pytest.raises(ModelFileError, match=message):
        saved.load_into(CARD.build_network(pick_backend("cpu")))


def test_initialising_from_a_model_of_other_classes_replaces_the_head(model: Path) -> None:
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


def test_initialising_at_another_size_names_both_sizes() -> None:
    def card(size: int) -> ModelCard:
        return ModelCard("resnet9", {"width": 4}, (size, size, 3), ("a", "b"), "pad", MEAN, STD)

    saved = Checkpoint(Path("m"), card(64), card(64).build_network(pick_backend("cpu")).tensors(), {})
    with pytest.raises(ModelFileError, match="architecture: it was trained on images of 64×64, this dataset has 32×32"):
        initialise_from(card(32).build_network(pick_backend("cpu")), card(32), saved)


def test_a_full_disk_leaves_the_old_file_unchanged(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match=r"No space left on device; free some space and run again with --resume"):
        save_checkpoint(model, CARD, {}, {})
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir()] == ["model.safetensors"]
