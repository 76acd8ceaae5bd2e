"""The training step and the evaluation."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cnn.augment import Augment, Maps, identity_maps
from cnn.backend import Array, Backend
from cnn.errors import ModelFileError, NonFiniteError, RecipeError
from cnn.inference import Inference
from cnn.layers import Run
from cnn.losses import Loss, SoftmaxCrossEntropy
from cnn.metrics import Evaluation, confusion_matrix
from cnn.models import Model, ResNet9
from cnn.network import Network
from cnn.optim import AdamW, Optimizer
from cnn.rng import key_of
from cnn.schedules import Cosine, Schedule


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained. `clip` bounds the gradient's norm; 0 is off."""

    model: Model = field(default_factory=ResNet9)
    optimizer: Optimizer = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Cosine)
    loss: Loss = field(default_factory=SoftmaxCrossEntropy)
    augment: Augment = field(default_factory=Augment)
    epochs: int = 20
    batch_size: int = 64
    clip: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("clip", 0), ("seed", 0)):
            if not getattr(self, name) >= least:
                raise RecipeError(f"{name}: expected {least} or more, found {getattr(self, name)}")


class BatchResult(NamedTuple):
    """One training batch, before the update: the sum of its rows' losses, and how many it got right."""

    loss_sum: float
    correct: int
    rows: int


class Trainer:
    """Trains `network` by `recipe` on pictures whose channels have `mean` and `std` (3,), in 0..255 units.

    `train_rows` is the number of pictures in an epoch, from which the schedule knows the number of steps.
    """

    def __init__(
        self, network: Network, recipe: Recipe, mean: np.ndarray, std: np.ndarray, train_rows: int
    ) -> None:
        self.network, self.recipe, self.backend = network, recipe, network.backend
        self.mean, self.std = normalisation(network, mean, std)  # (3,) each
        self.total_steps = recipe.epochs * math.ceil(train_rows / recipe.batch_size)
        self.step = 0  # updates done
        size, dtype = network.parameters.size, network.dtype
        self.slots = {name: self.backend.zeros((size,), dtype) for name in recipe.optimizer.slots}

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.recipe.optimizer.lr * self.recipe.schedule.factor(self.step, self.total_steps)

    def train_batch(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> BatchResult:
        """One update from uint8 images (B, H, W, 3), class numbers (B,) and row numbers (B,).

        Raises `NonFiniteError`, with the weights as before, where the loss or the gradient is not finite.
        """
        recipe, backend, network = self.recipe, self.backend, self.network
        maps = recipe.augment.maps(key_of(recipe.seed, "augment", self.step), rows, *images.shape[1:3])
        x = prepare(backend, images, maps, self.mean, self.std)  # (B, H, W, 3)
        targets = backend.asarray(labels)  # (B,)
        key = key_of(recipe.seed, "layers", self.step)
        run = Run(backend, training=True, key=key, rows=backend.asarray(rows), need_dx=False)

        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # reported below, in words
            outputs, cache = network.forward(run, x)  # (B, classes)
            loss, d_outputs = recipe.loss.forward(backend, outputs, targets, len(labels))
            network.backward(run, cache, d_outputs)
            squared_norm = backend.squared_norm(network.gradients.flat)
        if not (math.isfinite(float(loss)) and math.isfinite(squared_norm)):
            what = "gradient" if math.isfinite(float(loss)) else "loss"
            raise NonFiniteError(
                f"the {what} is no finite number at step {self.step + 1} of {self.total_steps} (learning rate "
                f"{self.lr:.3g}): training diverged; lower --lr (try {recipe.optimizer.lr / 10:.2g}) or "
                "set train.clip=1"
            )
        norm = math.sqrt(squared_norm)
        scale = recipe.clip / norm if 0.0 < recipe.clip < norm else 1.0
        lr = self.lr
        self.step += 1
        recipe.optimizer.update(
            backend, network.parameters, network.gradients.flat, self.slots, scale, lr, self.step
        )
        correct = int((outputs.argmax(axis=1) == targets).sum())
        return BatchResult(float(loss) * len(labels), correct, len(labels))

    def evaluate(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Evaluation:
        """Loss and confusion over batches of (images uint8 (B, H, W, 3), class numbers (B,)), not augmented.

        Raises `NonFiniteError` where the loss is not finite.
        """
        classes = self.network.out_shape[0]
        confusion = np.zeros((classes, classes), np.int64)  # (C, C)
        loss_sum, infer = 0.0, Inference(self.network)
        for images, labels in batches:
            x = prepare(self.backend, images, None, self.mean, self.std)  # (B, H, W, 3)
            with np.errstate(over="ignore", invalid="ignore"):  # reported below, in words
                outputs = infer(x)  # (B, C)
                loss, _ = self.recipe.loss.forward(self.backend, outputs, self.backend.asarray(labels), 1)
            loss_sum += float(loss)
            confusion += confusion_matrix(labels, self.backend.to_host(outputs.argmax(axis=1)), classes)
        evaluation = Evaluation(loss_sum / max(int(confusion.sum()), 1), confusion)
        if not math.isfinite(evaluation.loss):
            raise NonFiniteError(
                f"the validation loss is no finite number after step {self.step}: training diverged; lower --lr "
                f"(try {self.recipe.optimizer.lr / 10:.2g}) or set train.clip=1"
            )
        return evaluation

    def tensors(self) -> dict[str, np.ndarray]:
        """All that an exact resume needs beside `step`: parameters, state and the optimizer's memory."""
        memory = {f"optimizer.{name}": self.backend.to_host(slot) for name, slot in self.slots.items()}
        return self.network.tensors() | memory

    def load_tensors(self, tensors: dict[str, np.ndarray], step: int) -> None:
        """Go on from what `tensors` gave at `step`. Raises `ModelFileError` naming what does not fit."""
        for name, slot in self.slots.items():
            found = tensors.get(f"optimizer.{name}")
            if found is None or found.shape != slot.shape:
                raise ModelFileError(
                    f"optimizer.{name}: expected shape {slot.shape}, found "
                    f"{'nothing' if found is None else found.shape}; resume with the recipe that the run began with"
                )
        self.network.load_tensors(tensors)
        for name, slot in self.slots.items():
            slot[...] = self.backend.asarray(tensors[f"optimizer.{name}"])
        self.step = step


def normalisation(network: Network, mean: np.ndarray, std: np.ndarray) -> tuple[Array, Array]:
    """Per-channel mean and deviation (3,) as the device wants them; a channel that never varies is not divided."""
    move, dtype = network.backend.asarray, network.dtype
    return move(np.asarray(mean, dtype)), move(np.where(np.asarray(std) > 0, std, 1).astype(dtype))


def prepare(backend: Backend, images: np.ndarray, maps: Maps | None, mean: Array, std: Array) -> Array:
    """uint8 pictures (B, H, W, 3) as a network's normalised input: (B, H, W, 3)."""
    ys, xs, holes = identity_maps(*images.shape[:3]) if maps is None else maps
    move = backend.asarray
    return backend.resample(move(images), move(ys), move(xs), None if holes is None else move(holes), mean, std)
