"""Checks of image and label arrays, in training, evaluation, prediction and Grad-CAM."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.checkpoint import save_checkpoint
from cnn.errors import InputError
from cnn.inference.gradcam import GradCam
from cnn.inference.predictor import Predictor
from cnn.inputs.checks import check_images, check_labels
from tests.cnn.tiny_task import CARD, MEAN, STD, draw_images, make_trainer

IMAGES, LABELS = draw_images(8, 0)
ROWS = np.arange(8)


@pytest.fixture
def uses(tmp_path: Path) -> dict[str, Callable[[np.ndarray], object]]:
    """Every entry point that takes images."""
    trainer = make_trainer()
    save_checkpoint(tmp_path / "model.safetensors", CARD, trainer.network.tensors(), {})
    predictor = Predictor(tmp_path / "model.safetensors", pick_backend("cpu"))
    gradcam = GradCam(trainer.network, np.array(MEAN), np.array(STD))
    return {
        "train_batch": lambda images: trainer.train_batch(images, LABELS, ROWS),
        "initialise_from_images": trainer.initialise_from_images,
        "evaluate": lambda images: trainer.evaluate([(images, LABELS)]),
        "logits": predictor.logits,
        "probabilities": predictor.probabilities,
        "gradcam": lambda images: gradcam.maps(images, LABELS),
    }


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES / 255, r"expected uint8 \(N, 12, 12, 3\), found float64 \(8, 12, 12, 3\); .*\(255 \* images\)\.round"),
        (IMAGES.astype(np.int64), r"found int64 \(8, 12, 12, 3\); write images\.astype\(np\.uint8\)"),
        (IMAGES[:, :8, :8], r"found uint8 \(8, 8, 8, 3\); resize the images to 12x12"),
        (IMAGES[0], r"found uint8 \(12, 12, 3\); pass one image as a batch: images\[None\]"),
        (IMAGES[..., 0], r"found uint8 \(8, 12, 12\); repeat the grey channel"),
        (IMAGES.transpose(0, 3, 1, 2), r"found uint8 \(8, 3, 12, 12\); .* images\.transpose\(0, 2, 3, 1\)"),
        (IMAGES.tolist(), r"found an object of type list; write np\.asarray\(images, np\.uint8\)"),
    ],
    ids=["floats", "integers", "size", "single", "grey", "channels_first", "list"],
)
def test_wrong_images_are_refused_everywhere(
    images: np.ndarray, message: str, uses: dict[str, Callable[[np.ndarray], object]]
) -> None:
    for name, use in uses.items():
        with pytest.raises(InputError, match=message):
            use(images)
            pytest.fail(f"{name} accepted the images")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, r"labels: expected integers \(8,\) from 0 to 2, found 1 to 3; count the classes from 0"),
        (LABELS - 1, r"found -1 to 1"),
        (LABELS.astype(np.float32), r"found float32 \(8,\); write labels\.astype\(np\.int64\)"),
        (np.eye(3)[LABELS], r"found float64 \(8, 3\); write labels\.argmax\(axis=1\)"),
        (LABELS[:7], r"found int64 \(7,\); pass one label for each image"),
        (LABELS.tolist(), r"found an object of type list; write np\.asarray\(labels\)"),
    ],
    ids=["too_high", "negative", "floats", "one_hot", "too_few", "list"],
)
def test_wrong_labels_are_refused_everywhere(labels: np.ndarray, message: str) -> None:
    trainer = make_trainer()
    weights = trainer.network.parameters.flat.copy()
    gradcam = GradCam(trainer.network, np.array(MEAN), np.array(STD))
    for use in (
        lambda: trainer.train_batch(IMAGES, labels, ROWS),
        lambda: trainer.evaluate([(IMAGES, labels)]),
        lambda: gradcam.maps(IMAGES, labels),
    ):
        with pytest.raises(InputError, match=message):
            use()
    np.testing.assert_array_equal(trainer.network.parameters.flat, weights)


def test_valid_arrays_of_any_integer_type_and_empty_batches_pass() -> None:
    check_images(IMAGES[:, ::-1], (12, 12, 3))
    check_images(IMAGES[:0], (12, 12, 3))
    for dtype in (np.uint8, np.int32, np.int64):
        check_labels(LABELS.astype(dtype), 8, 3)
    check_labels(LABELS[:0], 0, 3)


def test_checks_do_not_read_the_pixels() -> None:
    check_images(np.broadcast_to(np.uint8(0), (10**9, 12, 12, 3)), (12, 12, 3))
