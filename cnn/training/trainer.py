"""The training step and the evaluation."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from cnn.backends.base import Array, Backend
from cnn.errors import ModelFileError, NonFiniteError, RecipeError, UnknownNameError
from cnn.evaluation.metrics import Evaluation
from cnn.inference.folded import FoldedNetwork
from cnn.inputs.augment import VIEWS, Augment, Maps, alternate_flips, identity_maps
from cnn.inputs.mixup import Mix
from cnn.layers import Run
from cnn.losses import Loss, SoftmaxCrossEntropy
from cnn.models import Model, ResNet9
from cnn.network import Network
from cnn.rng import key_of
from cnn.training.ema import EMA
from cnn.training.lookahead import Lookahead
from cnn.training.optimizers import AdamW, Optimizer
from cnn.training.schedules import Cosine, Schedule


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained. `clip` bounds the gradient's norm; 0 is off.

    `patience`, if it is not 0, is the number of epochs without a better one after which training stops.

    `views` names what the trained network looks at when it is evaluated once more, at the end: see
    cnn.inputs.augment.VIEWS.
    """

    model: Model = field(default_factory=ResNet9)
    optimizer: Optimizer = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Cosine)
    loss: Loss = field(default_factory=SoftmaxCrossEntropy)
    augment: Augment = field(default_factory=Augment)
    mix: Mix = field(default_factory=Mix)
    lookahead: Lookahead = field(default_factory=Lookahead)
    ema: EMA = field(default_factory=EMA)
    epochs: int = 20
    batch_size: int = 64
    clip: float = 0.0
    patience: int = 0
    views: Literal["none", "mirror", "mirror_shift"] = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("clip", 0), ("patience", 0), ("seed", 0)):
            if not getattr(self, name) >= least:
                raise RecipeError(f"{name}: expected {least} or more, found {getattr(self, name)}")
        if self.views not in VIEWS:
            raise UnknownNameError("views", self.views, VIEWS)


class BatchResult(NamedTuple):
    """One training batch, before the update: the sum of its rows' losses, and how many it got right."""

    loss_sum: float
    correct: int
    rows: int


class Trainer:
    """Trains `network` by `recipe` on images whose channels have `mean` and `std` (3,), in 0..255 units.

    `train_rows` is the number of images in an epoch, from which the schedule knows the number of steps.
    """

    def __init__(
        self, network: Network, recipe: Recipe, mean: np.ndarray, std: np.ndarray, train_rows: int
    ) -> None:
        self.network, self.recipe, self.backend = network, recipe, network.backend
        self.mean, self.std = normalisation(network, mean, std)  # (3,) each
        self.normal = self.backend.to_host(self.mean), self.backend.to_host(self.std)  # the same on the host
        self.epoch_steps = math.ceil(train_rows / recipe.batch_size)
        self.total_steps = recipe.epochs * self.epoch_steps
        self.step = 0  # updates done
        size, dtype = network.parameters.size, network.dtype
        self.slots = {name: self.backend.zeros((size,), dtype) for name in recipe.optimizer.slots}
        if recipe.lookahead.every:
            self.slots["average"] = self.backend.zeros((size,), dtype)
            self.slots["average_state"] = self.backend.zeros((network.state.size,), dtype)
        self.outcome = network  # what is judged and kept
        if recipe.ema.horizon:
            self.outcome = Network(network.layer, network.in_shape, network.backend, seed=None, dtype=dtype)
            self.slots["ema"], self.slots["ema_state"] = self.outcome.parameters.flat, self.outcome.state.flat

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.recipe.optimizer.lr * self.recipe.schedule.factor(self.step, self.total_steps)

    @property
    def progress(self) -> float:
        """The share of the training's steps that are done."""
        return self.step / self.total_steps

    def measure(self, images: np.ndarray) -> None:
        """Compute what the network computes from training images, uint8 (N, H, W, 3), before the first step."""
        self.network.measure(preprocess(self.backend, images, None, self.mean, self.std))

    def train_batch(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> BatchResult:
        """One update from uint8 images (B, H, W, 3), class numbers (B,) and row numbers (B,).

        Of mixed images, `correct` counts those whose heavier class was said. Raises `NonFiniteError`, with the
        weights as before, where the loss or the gradient is not finite.
        """
        recipe, backend, network = self.recipe, self.backend, self.network
        x, targets = self._augmented(images, labels, rows)  # (B, H, W, 3) and (B,) or (B, classes)
        key = key_of(recipe.seed, "layers", self.step)
        run = Run(backend, training=True, key=key, rows=backend.asarray(rows), need_dx=False)
        moving = network.parameters.moving(self.progress)
        moves = slice(moving[-1].last if moving else 0)  # those that stay come last

        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # reported below, in words
            outputs, cache = network.forward(run, x)  # (B, classes)
            loss, d_outputs = recipe.loss.forward(backend, outputs, targets, len(labels))
            network.backward(run, cache, d_outputs)
            squared_norm = backend.squared_norm(network.gradients.flat[moves])
        if not (math.isfinite(float(loss)) and math.isfinite(squared_norm)):
            what = "gradient" if math.isfinite(float(loss)) else "loss"
            raise NonFiniteError(
                f"the {what} is no finite number at step {self.step + 1} of {self.total_steps} (learning rate "
                f"{self.lr:.3g}): training diverged; lower --lr (try {recipe.optimizer.lr / 10:.2g}) or "
                "set train.clip=1"
            )
        norm = math.sqrt(squared_norm)
        scale = recipe.clip / norm if 0.0 < recipe.clip < norm else 1.0
        lr, progress = self.lr, self.progress
        self.step += 1
        recipe.optimizer.update(
            backend, network.parameters, network.gradients.flat, self.slots, scale, lr, self.step, progress
        )
        self._apply_lookahead()
        self._update_ema()
        heavier = targets if targets.ndim == 1 else targets.argmax(axis=1)  # (B,)
        correct = int((outputs.argmax(axis=1) == heavier).sum())
        return BatchResult(float(loss) * len(labels), correct, len(labels))

    def _augmented(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> tuple[Array, Array]:
        """What the network is to see, (B, H, W, 3), and to say: class numbers (B,), or shares of them (B, classes)."""
        seed, backend, size = self.recipe.seed, self.backend, images.shape[1:3]
        colours = self.recipe.augment.colours(key_of(seed, "colours", self.step), rows, *self.normal)
        x = preprocess(backend, images, self._maps(rows, *size), self.mean, self.std, colours)  # (B, H, W, 3)
        blend = self.recipe.mix.draw(key_of(seed, "mix", self.step), rows, *size)
        if blend is None:
            return x, backend.asarray(labels)
        x = backend.blend(x, *map(backend.asarray, (blend.partners, blend.shares, blend.boxes)))  # (B, H, W, 3)
        return x, backend.asarray(blend.targets(labels, self.network.out_shape[0]))

    def _maps(self, rows: np.ndarray, height: int, width: int) -> Maps:
        """Where the pixels of this step's images come from."""
        seed, augment = self.recipe.seed, self.recipe.augment
        maps = augment.maps(key_of(seed, "augment", self.step), rows, height, width)
        if augment.flip == "alternate":
            maps = maps.mirrored(alternate_flips(key_of(seed, "flip"), rows, self.step // self.epoch_steps))
        return maps

    def _apply_lookahead(self) -> None:
        """What lookahead does after a step: weights and state join their average, and go on from there."""
        lookahead, step, total = self.recipe.lookahead, self.step, self.total_steps
        if not lookahead.every or step < lookahead.first(total):
            return
        joins = step % lookahead.every == 0
        if not joins and step % self.epoch_steps:
            return
        kept = lookahead.kept(step, total) if joins else 1.0
        # With fewer epochs than it began with, a training may be beyond that step already.
        begins = step == lookahead.first(total) or not self.slots["average"].any()
        network = self.network
        for name, arena in (("average", network.parameters), ("average_state", network.state)):
            average, now = self.slots[name], arena.flat  # (size,) each
            if begins:
                average[...] = now
            else:
                average += (1.0 - kept) * (now - average)
                now[...] = average

    def _update_ema(self) -> None:
        """What the moving average does after a step."""
        if not self.recipe.ema.horizon:
            return
        joins = 1.0 - self.recipe.ema.kept(self.step, self.total_steps)
        for name, arena in (("ema", self.network.parameters), ("ema_state", self.network.state)):
            self.slots[name] += joins * (arena.flat - self.slots[name])  # (size,)

    def evaluate(
        self, batches: Iterable[tuple[np.ndarray, np.ndarray]], views: str = "none", network: Network | None = None
    ) -> Evaluation:
        """What `outcome` makes of batches of (images uint8 (B, H, W, 3), class numbers (B,)), not augmented.

        Another `network` of the same kind is judged in its place, if one is given. `views` is a key of
        cnn.inputs.augment.VIEWS: outputs are the mean over several looks at each image.
        Raises `NonFiniteError` where the loss is not finite.
        """
        network = network or self.outcome
        seen = [np.empty((0, *network.out_shape), network.dtype)]  # (B, C) each
        true = [np.empty(0, np.int64)]  # (B,) each
        loss_sum, infer = 0.0, FoldedNetwork(network)
        for images, labels in batches:
            with np.errstate(over="ignore", invalid="ignore"):  # reported below, in words
                outputs = tta_outputs(self.backend, infer, images, views, self.mean, self.std)  # (B, C)
                loss, _ = self.recipe.loss.forward(self.backend, outputs, self.backend.asarray(labels), 1)
            loss_sum += float(loss)
            seen.append(self.backend.to_host(outputs))
            true.append(labels.copy())
        evaluation = Evaluation(loss_sum / max(sum(map(len, true)), 1), np.concatenate(seen), np.concatenate(true))
        if not math.isfinite(evaluation.loss):
            raise NonFiniteError(
                f"the validation loss is no finite number after step {self.step}: training diverged; lower --lr "
                f"(try {self.recipe.optimizer.lr / 10:.2g}) or set train.clip=1"
            )
        return evaluation

    def tensors(self) -> dict[str, np.ndarray]:
        """All that an exact resume needs beside `step`: parameters, state, the optimizer's memory and the averages."""
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


def preprocess(
    backend: Backend, images: np.ndarray, maps: Maps | None, mean: Array, std: Array, colours: np.ndarray | None = None
) -> Array:
    """uint8 images (B, H, W, 3) as a network's normalised input: (B, H, W, 3)."""
    ys, xs, holes = identity_maps(*images.shape[:3]) if maps is None else maps
    arrays = [None if array is None else backend.asarray(array) for array in (ys, xs, holes, mean, std, colours)]
    return backend.resample(backend.asarray(images), *arrays)


def tta_outputs(
    backend: Backend, infer: FoldedNetwork, images: np.ndarray, views: str, mean: Array, std: Array
) -> Array:
    """The mean outputs (B, C) over all `views`, a key of cnn.inputs.augment.VIEWS, of uint8 images (B, H, W, 3)."""
    outputs = []
    for view in VIEWS[views]:
        x = preprocess(backend, images, view.maps(*images.shape[:3]), mean, std)  # (B, H, W, 3)
        outputs.append(infer(x) * view.weight)  # (B, C)
    return sum(outputs[1:], outputs[0])
