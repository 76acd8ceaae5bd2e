"""Training from images in the GPU's memory: the weights of a training that is sent its images, bit for bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.backends.base import Backend
from cnn.backends.gpu import gpu_backend
from cnn.inputs.augment import Augment
from cnn.inputs.device_images import DeviceImages
from cnn.inputs.mixup import Mix
from cnn.network import Network
from cnn.training.trainer import Trainer
from tests.cnn.tiny_task import MEAN, SHAPE, STD, draw_images, make_recipe

RECIPE = make_recipe(augment=Augment(True, 0.1, 0.4, cutout=0.3, brightness=0.3), mix=Mix("mixup"))
IMAGES, LABELS = draw_images(200, 0)
FIRST_LOSSES: dict[str, list[float]] = {}  # of the first schedule


def train(
    backend: Backend, cached: bool, steps: int = 2, micro_batch: int = 0
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of steps of 8 images, and all tensors; the host does not wait for a step before it starts the next."""
    network = Network(RECIPE.model.layers(SHAPE, 3), SHAPE, backend, seed=1)
    trainer = Trainer(network, replace(RECIPE, micro_batch=micro_batch), np.array(MEAN), np.array(STD), train_rows=200)
    images = None
    if cached:
        images = DeviceImages(backend, (200, *SHAPE))
        for first in (0, 120):
            images.fill(first, IMAGES[first : first + 120])
    started = []
    for step in range(steps):
        rows = (np.arange(step * 8, step * 8 + 8) * 7) % 200  # (8,)
        started.append(trainer.start_batch(images.take(rows) if images else IMAGES[rows], LABELS[rows], rows))
    return [batch.result().loss_sum for batch in started], trainer.tensors()


@pytest.mark.parametrize(("precision", "micro_batch"), [("float32", 0), ("bf16", 0), ("bf16", 3)])
def test_weights_are_the_same_with_and_without_images_on_the_device(
    device: Any, precision: str, micro_batch: int
) -> None:
    backend = gpu_backend(precision)
    losses, tensors = train(backend, cached=False, micro_batch=micro_batch)
    cached_losses, cached_tensors = train(backend, cached=True, micro_batch=micro_batch)
    assert cached_losses == losses
    for name, values in tensors.items():
        np.testing.assert_array_equal(cached_tensors[name], values, err_msg=name)
    expected, _ = train(pick_backend("reference"), cached=False, micro_batch=micro_batch)
    np.testing.assert_allclose(losses, expected, rtol=1e-4 if precision == "float32" else 1e-2)


def test_uploads_beside_kernels_do_not_change_a_training(device: Any, stream_schedule: str) -> None:
    """Pixels of one step are copied while kernels of another run, in whichever order the streams work."""
    losses, _ = train(gpu_backend("float32"), cached=False, steps=5)
    assert losses == FIRST_LOSSES.setdefault("losses", losses)
