"""The training step and the evaluation."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cnn.errors import ModelFileError, NonFiniteError
from cnn.evaluation.metrics import Evaluation
from cnn.inference.folded import FoldedNetwork
from cnn.inference.tta import tta_outputs
from cnn.inputs.checks import check_images, check_labels
from cnn.inputs.device_images import DeviceRows
from cnn.inputs.preprocess import normalisation, preprocess
from cnn.inputs.training_inputs import TrainingBatch, TrainingInputs
from cnn.layers import Run
from cnn.network import Network
from cnn.rng import key_of
from cnn.training.recipe import Recipe


class BatchResult(NamedTuple):
    """Sum of the losses and number of correct predictions of a training batch, before its update."""

    loss_sum: float
    correct: int
    rows: int


class Trainer:
    """Trains `network` by `recipe` on images whose channels have `mean` and `std` (3,), in 0..255 units.

    `train_rows`, the number of images in an epoch, determines the number of steps.
    """

    def __init__(self, network: Network, recipe: Recipe, mean: np.ndarray, std: np.ndarray, train_rows: int) -> None:
        self.network, self.recipe, self.backend = network, recipe, network.backend
        self.mean, self.std = normalisation(network, mean, std)  # (3,) each, on the device
        self._inputs = TrainingInputs(
            self.backend, recipe.augment, recipe.mix, recipe.seed, self.mean, self.std, network.out_shape[0]
        )
        self.epoch_steps = math.ceil(train_rows / recipe.batch_size)
        self.total_steps = recipe.epochs * self.epoch_steps
        self.step = 0  # number of updates done
        size, state_size, dtype = network.parameters.size, network.state.size, network.dtype
        self.slots = {name: self.backend.zeros((size,), dtype) for name in recipe.optimizer.slots}
        if recipe.lookahead.every:
            for name, length in zip(recipe.lookahead.slots, (size, state_size), strict=True):
                self.slots[name] = self.backend.zeros((length,), dtype)
        self.eval_network = network  # the network that is evaluated and saved
        if recipe.ema.horizon:
            self.eval_network = Network(network.layer, network.in_shape, network.backend, seed=None, dtype=dtype)
            averages = self.eval_network.parameters.flat, self.eval_network.state.flat
            self.slots |= zip(recipe.ema.slots, averages, strict=True)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.recipe.optimizer.lr * self.recipe.schedule.factor(self.step, self.total_steps)

    @property
    def progress(self) -> float:
        """The fraction of the training's steps that are done."""
        return self.step / self.total_steps

    def initialise_from_images(self, images: np.ndarray) -> None:
        """Compute the parameters that depend on training images, uint8 (N, H, W, 3), before the first step.

        Raises `InputError` for other arrays.
        """
        check_images(images, self.network.in_shape)
        self.network.initialise_from_images(preprocess(self.backend, images, None, self.mean, self.std))

    def train_batch(self, images: np.ndarray | DeviceRows, labels: np.ndarray, rows: np.ndarray) -> BatchResult:
        """Do one update from uint8 images (B, H, W, 3), class indices (B,) and row numbers (B,).

        For images blended by MixUp or CutMix, the class with the larger weight counts as correct. Raises `InputError`
        for other arrays, and `NonFiniteError` where the loss or the gradient is not finite; the weights are unchanged.
        """
        check_images(images, self.network.in_shape)
        check_labels(labels, len(images), self.network.out_shape[0])
        x, targets, device_rows = self._augment(images, labels, rows)
        key = key_of(self.recipe.seed, "layers", self.step)
        run = Run(self.backend, training=True, key=key, rows=device_rows, need_dx=False)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # reported below
            outputs, cache = self.network.forward(run, x)  # (B, classes)
            loss, d_outputs = self.recipe.loss.forward(self.backend, outputs, targets, len(labels))
            self.network.backward(run, cache, d_outputs)
            loss, norm = float(loss), self._gradient_norm()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            culprit = "gradient" if math.isfinite(loss) else "loss"
            where = f"at step {self.step + 1} of {self.total_steps} (learning rate {self.lr:.3g})"
            raise NonFiniteError(f"the {culprit} is not finite {where}: {self._remedy()}")
        self._update(norm)
        true = targets if targets.ndim == 1 else targets.argmax(axis=1)  # (B,)
        correct = int((outputs.argmax(axis=1) == true).sum())
        return BatchResult(loss * len(labels), correct, len(labels))

    def _augment(self, images: np.ndarray | DeviceRows, labels: np.ndarray, rows: np.ndarray) -> TrainingBatch:
        return self._inputs(images, labels, rows, self.step, self.step // self.epoch_steps)

    def _gradient_norm(self) -> float:
        """The norm of the gradient, without frozen parameters, which come last in the flat vector."""
        trained = self.network.parameters.trained_groups(self.progress)
        stop = trained[-1].last if trained else 0
        return math.sqrt(self.backend.squared_norm(self.network.gradients.flat[:stop]))

    def _remedy(self) -> str:
        return f"training diverged; lower --lr (try {self.recipe.optimizer.lr / 10:.2g}) or set train.clip=1"

    def _update(self, norm: float) -> None:
        """Update the weights from the clipped gradient, whose norm is `norm` before clipping, and their averages."""
        recipe, network, lr, progress = self.recipe, self.network, self.lr, self.progress
        scale = recipe.clip / norm if 0.0 < recipe.clip < norm else 1.0
        self.step += 1
        recipe.optimizer.update(
            self.backend, network.parameters, network.gradients.flat, self.slots, scale, lr, self.step, progress
        )
        recipe.lookahead.update(self.slots, network, self.step, self.total_steps, self.epoch_steps)
        recipe.ema.update(self.slots, network, self.step, self.total_steps)

    def evaluate(
        self, batches: Iterable[tuple[np.ndarray, np.ndarray]], views: str = "none", network: Network | None = None
    ) -> Evaluation:
        """Evaluate `network`, by default `eval_network`, on batches of (uint8 images (B, H, W, 3), class indices (B,)).

        `views` is the test-time augmentation, a key of cnn.inference.tta.VIEWS. Raises `InputError` for other arrays,
        and `NonFiniteError` where the loss is not finite.
        """
        network = network or self.eval_network
        all_outputs = [np.empty((0, *network.out_shape), network.dtype)]  # (B, C) each
        all_labels = [np.empty(0, np.int64)]  # (B,) each
        loss_sum, infer = 0.0, FoldedNetwork(network)
        for images, labels in batches:
            check_images(images, network.in_shape)
            check_labels(labels, len(images), network.out_shape[0])
            with np.errstate(over="ignore", invalid="ignore"):  # reported below
                outputs = tta_outputs(self.backend, infer, images, views, self.mean, self.std)  # (B, C)
                loss, _ = self.recipe.loss.forward(self.backend, outputs, self.backend.asarray(labels), 1)
            loss_sum += float(loss)
            all_outputs.append(self.backend.to_host(outputs))
            all_labels.append(labels.copy())
        labels = np.concatenate(all_labels)  # (N,)
        evaluation = Evaluation(loss_sum / max(len(labels), 1), np.concatenate(all_outputs), labels)
        if not math.isfinite(evaluation.loss):
            raise NonFiniteError(f"the validation loss is not finite after step {self.step}: {self._remedy()}")
        return evaluation

    def tensors(self) -> dict[str, np.ndarray]:
        """Everything that an exact resume needs, besides `step`: parameters, state, optimizer slots and averages."""
        slots = {f"optimizer.{name}": self.backend.to_host(slot) for name, slot in self.slots.items()}
        return self.network.tensors() | slots

    def load_tensors(self, tensors: dict[str, np.ndarray], step: int) -> None:
        """Resume from the result of `tensors` at `step`. Raises `ModelFileError` naming a tensor that does not fit."""
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
