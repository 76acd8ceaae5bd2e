"""A small task that the tests train on: noisy 12x12 images of three easy classes."""

import numpy as np

from cnn.backends.base import Backend
from cnn.checkpoint import ModelCard
from cnn.inputs.augment import Augment
from cnn.models import Airbench94, Plain
from cnn.network import Network
from cnn.training.averaging import Lookahead
from cnn.training.optimizers import SGD, AdamW
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from tests.cnn.oracles import get_backend

MEAN, STD = (110.0, 120.0, 130.0), (60.0, 61.0, 62.0)
SHAPE = (12, 12, 3)
CARD = ModelCard("plain", {"width": 8}, SHAPE, ("dot", "stripe", "frame"), "pad", MEAN, STD)
# The recipe of the CIFAR-10 speed runs, on a small network: 2 epochs of 5 steps.
SPEED_RUN: dict[str, object] = {
    "model": Airbench94(width=4), "optimizer": SGD(2.0, 0.85, True, 0.0153, True), "batch_size": 40, "epochs": 2,
    "augment": Augment("alternate", 0.1, 1.0), "lookahead": Lookahead(every=2, start=0.1),
}  # fmt: skip


def draw_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, 12, 12, 3) and class indices (count,)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    images = generator.integers(0, 120, (count, *SHAPE))
    for image, label in zip(images, labels, strict=True):
        i, j = generator.integers(2, 8, 2)
        spots = {0: np.s_[i : i + 3, j : j + 3], 1: np.s_[:, j : j + 2], 2: np.s_[:: 11, :]}
        image[spots[int(label)]] += 120
    return images.astype(np.uint8), labels


def make_recipe(**changes: object) -> Recipe:
    values = {
        "model": Plain(width=8), "optimizer": AdamW(5e-3), "epochs": 6, "batch_size": 32,
        "augment": Augment(crop_scale=1.0, shift=0.1),
    }  # fmt: skip
    return Recipe(**(values | changes))  # type: ignore[arg-type]


def make_trainer(backend: str = "cpu", **changes: object) -> Trainer:
    recipe = make_recipe(**changes)
    network = Network(recipe.model.layers(SHAPE, 3), SHAPE, get_backend(backend), seed=1)
    return Trainer(network, recipe, np.array(MEAN), np.array(STD), train_rows=200)


def batch_size(backend: Backend) -> int:
    """Small on a GPU, which is emulated where there is none."""
    return 4 if backend.name == "cuda" else 32


def train(trainer: Trainer, steps: int) -> list[float]:
    """Train for `steps` batches, drawn from 200 images; returns the mean loss of each step."""
    images, labels = draw_images(200, 0)
    losses = []
    size = batch_size(trainer.backend)
    for _ in range(steps):
        rows = np.arange(trainer.step * size, trainer.step * size + size) % 200
        losses.append(trainer.train_batch(images[rows], labels[rows], rows).loss_sum / size)
    return losses
