"""The training step and the evaluation."""

import math
from collections.abc import Callable, Iterable

import numpy as np

from cnn.backends.base import CORRECT, LOSS, OK, Array
from cnn.errors import ModelFileError, NonFiniteError
from cnn.evaluation.metrics import Evaluation
from cnn.inference.folded import FoldedNetwork
from cnn.inference.tta import tta_outputs
from cnn.inputs.checks import check_images, check_labels
from cnn.inputs.device_images import DeviceRows
from cnn.inputs.preprocess import normalisation, preprocess
from cnn.inputs.training_inputs import TrainingInputs
from cnn.layers import Run
from cnn.network import Network
from cnn.rng import key_of
from cnn.training.pending import BatchResult, PendingBatch
from cnn.training.recipe import Recipe

MAX_PENDING = 2  # steps: a GPU computes one while the host prepares the next


class Trainer:
    """Trains `network` by `recipe` on images whose channels have `mean` and `std` (3,), in 0..255 units.

    `train_rows`, the number of images in an epoch, determines the number of steps.
    """

    def __init__(self, network: Network, recipe: Recipe, mean: np.ndarray, std: np.ndarray, train_rows: int) -> None:
        self.network, self.recipe, self.backend = network, recipe, network.backend
        self.mean, self.std = normalisation(network, mean, std)  # (3,) each, on the device
        self.inputs = TrainingInputs(
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
        self._average_begun = False  # whether there is an average for lookahead
        self._outcome = self.backend.asarray(np.array([1.0, 1.0, 0.0, 0.0]))  # (4,), see cnn.backends.base.OK
        self._pending: list[PendingBatch] = []  # oldest first

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
        return self.start_batch(images, labels, rows).result()

    def start_batch(self, images: np.ndarray | DeviceRows, labels: np.ndarray, rows: np.ndarray) -> PendingBatch:
        """As `train_batch`, but without waiting for the device: `result` of what is returned does, and raises.

        The arrays may be reused at once. Where a step fails, steps started after it change no weights, and fail too. At
        most MAX_PENDING steps are under way: another one first waits for the result of the oldest.
        """
        while len(self._pending) >= MAX_PENDING:
            self._pending[0].result()
        check_images(images, self.network.in_shape)
        check_labels(labels, len(images), self.network.out_shape[0])
        step, lr = self.step, self.lr
        x, targets, device_rows = self.inputs(images, labels, rows, step, step // self.epoch_steps)
        key = key_of(self.recipe.seed, "layers", step)
        run = Run(self.backend, training=True, key=key, rows=device_rows, need_dx=False)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # reported by `_settle`
            outputs, cache = self.network.forward(run, x)  # (B, classes)
            loss, d_outputs, correct = self.recipe.loss.forward(self.backend, outputs, targets, len(labels))
            self.network.backward(run, cache, d_outputs)
            self.backend.judge_step(self._outcome, loss, correct, self._trained_gradient(), self.recipe.clip)
        self._update(lr)
        read_outcome = self.backend.read_later(self._outcome)
        self._pending.append(PendingBatch(step, lr, len(labels), read_outcome, self._settle))
        return self._pending[-1]

    def _trained_gradient(self) -> Array:
        """The gradient (size,) without frozen parameters, which come last in the flat vector."""
        trained = self.network.parameters.trained_groups(self.progress)
        return self.network.gradients.flat[: trained[-1].last if trained else 0]

    def _settle(self, batch: PendingBatch) -> None:
        """Wait for the pending steps up to that of `batch`, in their order."""
        while batch.settled is None:
            first = self._pending[0]
            outcome = first.read_outcome()  # (4,) float64
            if outcome[OK]:
                first.settled = BatchResult(float(outcome[LOSS]) * first.rows, int(outcome[CORRECT]), first.rows)
                del self._pending[0]
            else:
                self._recover(first, float(outcome[LOSS]))

    def _recover(self, failed: PendingBatch, loss: float) -> None:
        """Go back to the step `failed`, whose loss or gradient is not finite; it and later ones changed no weights."""
        culprit = "gradient" if math.isfinite(loss) else "loss"
        where = f"at step {failed.step + 1} of {self.total_steps} (learning rate {failed.lr:.3g})"
        error = NonFiniteError(f"the {culprit} is not finite {where}: {self._remedy()}")
        for batch in self._pending:
            batch.settled = error
        self._pending.clear()
        self.step = failed.step
        self._outcome[OK] = 1.0
        self._average_begun = self._has_average()

    def _has_average(self) -> bool:
        """Whether lookahead has begun, by its average, which is zeros at first."""
        names = self.recipe.lookahead.slots if self.recipe.lookahead.every else ()
        return any(self.backend.to_host(self.slots[name]).any() for name in names[:1])

    def _remedy(self) -> str:
        return f"training diverged; lower --lr (try {self.recipe.optimizer.lr / 10:.2g}) or set train.clip=1"

    def _update(self, lr: float) -> None:
        """Update the weights, from the clipped gradient, and their averages, where the step's outcome is finite."""
        recipe, network, outcome, progress = self.recipe, self.network, self._outcome, self.progress
        self.step += 1
        recipe.optimizer.update(
            self.backend, network.parameters, network.gradients.flat, self.slots, outcome, lr, self.step, progress
        )
        self._average_begun = recipe.lookahead.update(
            self.slots, network, outcome, self._average_begun, self.step, self.total_steps, self.epoch_steps
        )
        recipe.ema.update(self.slots, network, outcome, self.step, self.total_steps)

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
        started: list[tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]] = []  # loss and outputs, oldest first

        def finish_one() -> float:
            loss, outputs = started.pop(0)
            all_outputs.append(outputs())
            return float(loss())

        for images, labels in batches:
            check_images(images, network.in_shape)
            check_labels(labels, len(images), network.out_shape[0])
            with np.errstate(over="ignore", invalid="ignore"):  # reported below
                outputs = tta_outputs(self.backend, infer, images, views, self.mean, self.std)  # (B, C)
                result = self.recipe.loss.forward(self.backend, outputs, self.backend.asarray(labels), 1)
            started.append((self.backend.read_later(result.loss), self.backend.read_later(outputs)))
            all_labels.append(labels.copy())
            if len(started) == MAX_PENDING:
                loss_sum += finish_one()
        while started:
            loss_sum += finish_one()
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
        if self._pending:
            self._settle(self._pending[-1])
        self.network.load_tensors(tensors)
        for name, slot in self.slots.items():
            slot[...] = self.backend.asarray(tensors[f"optimizer.{name}"])
        self.step = step
        self._average_begun = self._has_average()
