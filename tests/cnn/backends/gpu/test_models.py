"""Whole models on the GPU in each precision against the reference: gradients, training steps and inference."""

from typing import Any

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.backends.base import Backend
from cnn.inference.folded import FoldedNetwork
from cnn.inputs.augment import Augment
from cnn.models import Airbench94, Model, ResNet9, ResNet18, Seed
from cnn.network import Network
from cnn.training.optimizers import SGD
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from tests.cnn.backends.gpu.rounded import RoundedBackend

SHAPE, CLASSES, BATCH, STEPS = (12, 14, 3), 5, 4, 4
MEAN, STD = np.full(3, 127.5), np.full(3, 64.0)
MODELS: dict[str, tuple[Model, float]] = {  # and a learning rate
    "resnet9": (ResNet9(width=8), 0.01), "resnet18": (ResNet18(width=8), 0.01), "seed": (Seed(), 0.05),
    "airbench94": (Airbench94(width=8), 0.05),
}  # fmt: skip
BOUNDS = {"float32": (1e-4, 1e-4), "tf32": (1e-3, 1e-3), "bf16": (1e-2, 1e-2)}


def images() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (STEPS, BATCH, *SHAPE) and class indices (STEPS, BATCH)."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (STEPS, BATCH, *SHAPE), np.uint8), generator.integers(0, CLASSES, (STEPS, BATCH))


def make_trainer(name: str, backend: Backend) -> Trainer:
    model, lr = MODELS[name]
    network = Network(model.layers(SHAPE, CLASSES), SHAPE, backend)
    network.initialise_from_images(backend.asarray(normalised(backend)))
    recipe = Recipe(model=model, optimizer=SGD(lr), batch_size=BATCH, epochs=1, augment=Augment(False, 0.0, 1.0))
    return Trainer(network, recipe, MEAN, STD, STEPS * BATCH)


def normalised(backend: Backend) -> Any:
    """The first batch as the network gets it, float32 (BATCH, *SHAPE)."""
    return backend.asarray(((images()[0][0] - MEAN) / STD).astype(np.float32))


def train(trainer: Trainer) -> dict[str, np.ndarray]:
    losses = []
    for step, (batch, labels) in enumerate(zip(*images(), strict=True)):
        losses.append(trainer.train_batch(batch, labels, np.arange(BATCH)).loss_sum / BATCH)
        if step == 0:
            gradients = trainer.backend.to_host(trainer.network.gradients.flat)  # (size,)
    x = normalised(trainer.backend)
    outputs = trainer.backend.to_host(trainer.network.infer(x))
    folded = trainer.backend.to_host(FoldedNetwork(trainer.network)(x))
    return {"losses": np.array(losses), "gradients": gradients, "outputs": outputs, "folded": folded}


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", MODELS)
def test_measure(device: Any, name: str, precision: str) -> None:
    found = train(make_trainer(name, pick_backend("cuda", precision=precision)))
    expected = train(make_trainer(name, RoundedBackend(precision) if precision != "float32" else pick_backend("reference")))
    print()
    print(name, precision, {k: f"{error(found[k], expected[k]):.1e}" for k in found}, expected["losses"].round(3))
