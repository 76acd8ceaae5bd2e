"""Whole models on the GPU in TF32 and bfloat16 against the reference: gradients, training steps and inference.

tests/golden and tests/cnn/test_parity.py compare the same models in float32.
"""

from typing import NamedTuple

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.backends.base import Backend
from cnn.backends.reference import ReferenceBackend
from cnn.inference.folded import FoldedNetwork
from cnn.inputs.augment import Augment
from cnn.models import Airbench94, Model, ResNet9, ResNet18, Seed
from cnn.network import Network
from cnn.training.optimizers import SGD
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from tests.cnn.backends.gpu.rounded import RoundedBackend
from tests.cnn.backends.gpu.storage import error

pytestmark = pytest.mark.gpu
SHAPE, CLASSES, BATCH, STEPS = (16, 16, 3), 5, 8, 3
MEAN, STD = np.full(3, 127.5), np.full(3, 64.0)
# Relative errors in norm. Of losses, by precision, against the exact reference; measured were 8e-4 in TF32 and 9e-4 in
# bfloat16, whose unit roundoffs are 5e-4 and 4e-3.
LOSSES = {"tf32": 1e-3, "bf16": 5e-3}
# Of the first step's gradients, against the reference with the same roundings (rounded.py). The order of a sum changes
# its last bit, and one in thousands of features is then rounded to the other side: measured were 5e-5 of smooth
# networks, and 4e-2 of those with ReLUs, where a feature near 0 may get no gradient.
SMOOTH, KINKED = 1e-3, 0.1
OUTPUTS = 0.05  # of the trained network, against the reference with the same roundings; measured: 2e-2
MODELS: dict[str, tuple[Model, float, float]] = {  # with a learning rate, and the bound for gradients
    "resnet9": (ResNet9(width=8), 0.001, KINKED), "resnet18": (ResNet18(width=8), 0.001, KINKED),
    "seed": (Seed(), 0.05, SMOOTH), "airbench94": (Airbench94(width=8), 0.05, SMOOTH),
}  # fmt: skip


class Training(NamedTuple):
    """Losses (STEPS,), all gradients of the first step (size,), and then the network and its outputs (BATCH, 5)."""

    losses: np.ndarray
    gradients: np.ndarray
    network: FoldedNetwork
    outputs: np.ndarray


def images() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (STEPS, BATCH, *SHAPE) and class indices (STEPS, BATCH)."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (STEPS, BATCH, *SHAPE), np.uint8), generator.integers(0, CLASSES, (STEPS, BATCH))


def first_batch() -> np.ndarray:
    """The network's first inputs, float32 (BATCH, *SHAPE)."""
    return ((images()[0][0] - MEAN) / STD).astype(np.float32)


def train(name: str, backend: Backend) -> Training:
    model, lr, _ = MODELS[name]
    network = Network(model.layers(SHAPE, CLASSES), SHAPE, backend)
    network.initialise_from_images(backend.asarray(first_batch()))
    recipe = Recipe(model=model, optimizer=SGD(lr), batch_size=BATCH, epochs=1, augment=Augment(False, 0.0, 1.0))
    trainer = Trainer(network, recipe, MEAN, STD, STEPS * BATCH)
    losses = []
    for step, (batch, labels) in enumerate(zip(*images(), strict=True)):
        losses.append(trainer.train_batch(batch, labels, np.arange(BATCH)).loss_sum / BATCH)
        if step == 0:
            gradients = backend.to_host(network.gradients.flat)  # (size,)
    folded = FoldedNetwork(network)
    return Training(np.array(losses), gradients, folded, backend.to_host(folded(backend.asarray(first_batch()))))


@pytest.mark.parametrize("precision", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_model_matches_the_reference(name: str, precision: str) -> None:
    backend = pick_backend("cuda", precision=precision)
    found = train(name, backend)
    exact, rounded = train(name, ReferenceBackend()), train(name, RoundedBackend(precision))
    assert error(found.losses, exact.losses) < LOSSES[precision]
    assert error(found.gradients, rounded.gradients) < MODELS[name][2]
    assert error(found.outputs, rounded.outputs) < OUTPUTS
    for rows in (slice(5, 6), slice(None, None, -1)):  # an image's outputs do not depend on the others
        alone = found.network(backend.asarray(np.ascontiguousarray(first_batch()[rows])))  # (rows, CLASSES)
        np.testing.assert_array_equal(backend.to_host(alone), found.outputs[rows])
