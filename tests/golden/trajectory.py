"""The trainings of the golden files: small networks, ten steps of fixed images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnn.inputs.augment import Augment
from cnn.models import Airbench94, Model, ResNet9, ResNet18, Seed
from cnn.training.optimizers import SGD
from cnn.training.recipe import Recipe
from cnn.training.schedules import Constant

STEPS, BATCH, CLASSES = 10, 8, 10
MEAN, STD = np.full(3, 127.5), np.full(3, 64.0)


@dataclass(frozen=True)
class Trajectory:
    """A network and the size of its images; `path` is its golden file."""

    model: Model
    size: int
    lr: float

    @property
    def name(self) -> str:
        return type(self.model).__name__.lower()

    @property
    def path(self) -> Path:
        return Path(__file__).with_name(f"{self.name}.npz")

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            model=self.model, optimizer=SGD(self.lr), schedule=Constant(), batch_size=BATCH, epochs=1,
            augment=Augment(flip=False, crop_scale=1.0),
        )  # fmt: skip

    def batches(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (STEPS, BATCH, size, size, 3) and class indices (STEPS, BATCH)."""
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (STEPS, BATCH, self.size, self.size, 3), np.uint8)
        return images, generator.integers(0, CLASSES, (STEPS, BATCH))


TRAJECTORIES = (
    Trajectory(ResNet9(width=4), 16, 0.02), Trajectory(Seed(), 12, 0.05), Trajectory(ResNet18(width=3), 12, 0.02),
    Trajectory(Airbench94(width=4), 15, 0.1),
)  # fmt: skip
