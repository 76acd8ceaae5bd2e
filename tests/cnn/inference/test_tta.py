"""Test-time augmentation."""

from pathlib import Path

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.backends.reference import ReferenceBackend
from cnn.errors import UnknownNameError
from cnn.inference.folded import FoldedNetwork
from cnn.inference.predictor import Predictor
from cnn.inference.tta import VIEWS
from tests.cnn.tiny_task import MEAN, STD, draw_images, make_recipe, make_trainer, train

REFERENCE = ReferenceBackend()


def test_views_shift_and_mirror() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    plain = [images, padded[:, :32, :32], padded[:, 2:, 2:]]
    expected = [side for image in plain for side in (image, image[:, :, ::-1])]
    views = VIEWS["mirror_shift"]
    for view, image in zip(views, expected, strict=True):
        out = REFERENCE.resample(images, *view.maps(3, 32, 32), np.zeros(3), np.ones(3))
        np.testing.assert_array_equal(out, image)
    assert [view.weight for view in views] == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    assert views[:2] == tuple(view._replace(weight=view.weight / 2) for view in VIEWS["mirror"])
    assert all(sum(view.weight for view in policy) == 1.0 for policy in VIEWS.values())
    down = VIEWS["mirror_shift"][2].maps(1, 128, 96)
    assert (down.ys[0, :6].tolist(), down.xs[0, :6].tolist()) == ([4, 3, 2, 1, 0, 1], [3, 2, 1, 0, 1, 2])


def test_outputs_are_averaged_over_views_before_the_metrics() -> None:
    trainer = make_trainer()
    train(trainer, 10)
    images, labels = draw_images(40, 5)
    alone = trainer.evaluate([(images, labels)])
    assert alone.loss == trainer.evaluate([(images, labels)], "none").loss
    infer = FoldedNetwork(trainer.network)
    x = ((images - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    outputs = (infer(x) + infer(np.ascontiguousarray(x[:, :, ::-1]))) / 2
    loss = trainer.recipe.loss.forward(trainer.backend, outputs, labels, 40).loss
    mirrored = trainer.evaluate([(images, labels)], "mirror")
    assert mirrored.loss == pytest.approx(float(loss), rel=1e-4)
    assert mirrored.loss != pytest.approx(alone.loss, rel=1e-3)
    assert mirrored.accuracy == (outputs.argmax(axis=1) == labels).mean()
    assert trainer.evaluate([(images, labels)], "mirror_shift").loss != pytest.approx(mirrored.loss, rel=1e-4)


def test_unknown_views_are_refused() -> None:
    for use in (
        lambda: make_recipe(views="mirorr"),
        lambda: Predictor(Path("model.safetensors"), pick_backend("cpu"), "mirorr"),
    ):
        with pytest.raises(UnknownNameError, match="no views is called 'mirorr'; did you mean 'mirror'"):
            use()
