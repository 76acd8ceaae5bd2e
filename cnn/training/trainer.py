"""The training step and the evaluation.

A step computes its micro-batches with the same weights, adds up their results (`cnn/training/micro_batches.py`), and
makes one update of the sum: of the weights, of batch norm's running statistics, and of their averages.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from cnn.arena import Arena
from cnn.backends.base import CORRECT, LOSS, OK, Array, MicroSums, StatisticsLayout
from cnn.errors import InputError, ModelFileError, NonFiniteError
from cnn.evaluation.metrics import EvaluatedBatch, Evaluation
from cnn.inference.folded import FoldedNetwork
from cnn.inference.tta import tta_outputs
from cnn.inputs.checks import check_images, check_labels
from cnn.inputs.device_images import DeviceRows
from cnn.inputs.preprocess import normalisation, preprocess
from cnn.inputs.training_inputs import MicroBatch, TrainingBatch, TrainingInputs
from cnn.layers import Run
from cnn.network import Network
from cnn.rng import key_of
from cnn.training.micro_batches import Memory, PartialSum, TreeSum, split_batch, statistics_layout
from cnn.training.pending import BatchResult, PendingBatch
from cnn.training.recipe import Recipe
from cnn.training.slices import Exchange

MAX_PENDING = 2  # steps: a GPU computes one while the host prepares the next


class Trainer:
    """Trains `network` by `recipe` on images whose channels have `mean` and `std` (3,), in 0..255 units.

    `train_rows`, the number of images in an epoch, determines the number of steps. Raises `RecipeError` for
    micro-batches of a network with layers whose state is not batch norm's.
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
        self._layout = statistics_layout(network) if recipe.is_divided else None
        self._memory = [Memory(network.gradients, self._statistics())]  # not in use

    @property
    def layout(self) -> StatisticsLayout | None:
        """Where batch norm's statistics lie in the network's state; None where a batch is one micro-batch."""
        return self._layout

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
        self._check(images, labels)
        size = self.recipe.micro_batch if self.recipe.is_divided else len(labels)
        return self.start_micro_batches(split_batch(images, labels, rows, max(size, 1)), len(labels))

    def start_micro_batches(self, micro_batches: Sequence[MicroBatch], batch_rows: int) -> PendingBatch:
        """As `start_batch`, of a batch of `batch_rows` images that is already divided; a micro-batch may be empty."""
        return self.start_update(self.compute(micro_batches, batch_rows))

    def compute(self, micro_batches: Sequence[MicroBatch], batch_rows: int, first: int = 0) -> TreeSum:
        """Compute micro-batches of this step's batch of `batch_rows` images, with the indices from `first` on.

        Returns their sum, as far as it can be added up without the other micro-batches of the batch. The weights do not
        change, nor does the state, unless the recipe has no micro-batches: then batch norm moves it at once.
        """
        while len(self._pending) >= MAX_PENDING:
            self._pending[0].result()
        for part in micro_batches:
            self._check(part.images, part.labels)
        if not self.recipe.is_divided and len(micro_batches) > 1:
            raise InputError(
                f"expected the whole batch at once, found {len(micro_batches)} micro-batches; set train.micro_batch"
            )
        total = TreeSum(self._merge, first)
        filled = [(i, part) for i, part in enumerate(micro_batches, first) if len(part.labels)]
        inputs = self.inputs.micro_batches([part for _, part in filled], self.step, self.step // self.epoch_steps)
        for (i, _), batch in zip(filled, inputs, strict=True):
            total.add(self._compute(i, batch, batch_rows))
        return total

    def combine(self, own: TreeSum, exchange: Exchange) -> TreeSum:
        """Add up the sums of all processes of a training, of which `own` is this one's. Raises what `exchange` raises.

        After an error the weights are as before, and the step may be computed again.
        """
        memories = [node.memory for node in own.nodes if node.memory is not None]
        if not memories:
            memories = [self._take_memory()]
        try:
            sums = exchange.total(own.nodes, memories[0].gradients.flat)
        except BaseException:
            self._memory += memories
            raise
        self._memory += memories[1:]
        whole = TreeSum(self._merge)
        whole.nodes.append(PartialSum(0, own.nodes[-1].last if own.nodes else 1, sums, memories[0]))
        return whole

    def start_update(self, total: TreeSum) -> PendingBatch:
        """Start the update by the sum of all micro-batches of this step's batch."""
        whole, step, lr = total.total(), self.step, self.lr
        gradient, loss, correct, statistics, rows = whole.sums
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # reported by `_settle`
            trained = self._trained(gradient)  # (trained size,)
            self.backend.judge_step(self._outcome, loss, correct, trained, self.recipe.clip)
            if self._layout is not None:
                self.backend.move_statistics(self.network.state.flat, statistics, self._layout, rows, self._outcome)
            self._update(gradient, lr)
        if whole.memory is not None:
            self._memory.append(whole.memory)
        read_outcome = self.backend.read_later(self._outcome)
        self._pending.append(PendingBatch(step, lr, rows, read_outcome, self._settle))
        return self._pending[-1]

    def _check(self, images: np.ndarray | DeviceRows, labels: np.ndarray) -> None:
        check_images(images, self.network.in_shape)
        check_labels(labels, len(images), self.network.out_shape[0])

    def _compute(self, index: int, batch: TrainingBatch, batch_rows: int) -> PartialSum:
        """The result of one micro-batch. Where it is the whole batch, it moves the running statistics."""
        memory = self._take_memory()
        key = key_of(self.recipe.seed, "layers", self.step)
        divided = memory.statistics is not None
        run = Run(self.backend, training=True, key=key, rows=batch.rows, need_dx=False, sets_statistics=divided)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # reported by `_settle`
            outputs, cache = self.network.forward(run, batch.x, memory.statistics)  # (B, classes)
            loss, d_outputs, correct = self.recipe.loss.forward(self.backend, outputs, batch.targets, batch_rows)
            self.network.backward(run, cache, d_outputs, memory.gradients)
        statistics = memory.statistics.flat if memory.statistics is not None else None  # (state size,)
        sums = MicroSums(memory.gradients.flat, loss, correct, statistics, len(batch.x))
        return PartialSum(index, index + 1, sums, memory)

    def _merge(self, first: PartialSum, second: PartialSum) -> PartialSum:
        assert self._layout is not None
        with np.errstate(over="ignore", invalid="ignore"):  # reported by `_settle`
            sums = self.backend.merge_sums(first.sums, second.sums, self._layout)
        if second.memory is not None:
            self._memory.append(second.memory)
        return PartialSum(first.first, second.last, sums, first.memory)

    def _take_memory(self) -> Memory:
        """Memory for the result of a micro-batch; it is in use until it is put on `_memory` again."""
        if self._memory:
            return self._memory.pop()
        network = self.network
        return Memory(Arena(network.gradients.specs, self.backend, network.dtype), self._statistics())

    def _statistics(self) -> Arena | None:
        """Memory for batch norm's statistics; None where a batch is one micro-batch."""
        network = self.network
        return Arena(network.state.specs, self.backend, network.dtype) if self.recipe.is_divided else None

    def _trained(self, gradient: Array) -> Array:
        """The gradient (size,) without frozen parameters, which come last in the flat vector."""
        trained = self.network.parameters.trained_groups(self.progress)
        return gradient[: trained[-1].last if trained else 0]

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

    def _update(self, gradient: Array, lr: float) -> None:
        """Update the weights by the clipped `gradient` (size,), and their averages, if the step's outcome is finite."""
        recipe, network, outcome, progress = self.recipe, self.network, self._outcome, self.progress
        self.step += 1
        recipe.optimizer.update(
            self.backend, network.parameters, gradient, self.slots, outcome, lr, self.step, progress
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
        return self.evaluation(self.evaluate_batches(batches, views, network))

    def evaluate_batches(
        self, batches: Iterable[tuple[np.ndarray, np.ndarray]], views: str = "none", network: Network | None = None
    ) -> Iterator[EvaluatedBatch]:
        """Yield the outcome of each batch of an evaluation: see `evaluate`."""
        network = network or self.eval_network
        infer = FoldedNetwork(network)
        started: deque[Callable[[], EvaluatedBatch]] = deque()  # oldest first

        def later(loss: Array, outputs: Array, labels: np.ndarray) -> Callable[[], EvaluatedBatch]:
            read_loss, read_outputs = self.backend.read_later(loss), self.backend.read_later(outputs)
            return lambda: EvaluatedBatch(float(read_loss()), read_outputs(), labels)

        for images, labels in batches:
            check_images(images, network.in_shape)
            check_labels(labels, len(images), network.out_shape[0])
            with np.errstate(over="ignore", invalid="ignore"):  # reported by `evaluation`
                outputs = tta_outputs(self.backend, infer, images, views, self.mean, self.std)  # (B, C)
                result = self.recipe.loss.forward(self.backend, outputs, self.backend.asarray(labels), 1)
            started.append(later(result.loss, outputs, labels.copy()))
            if len(started) == MAX_PENDING:
                yield started.popleft()()
        while started:
            yield started.popleft()()

    def evaluation(self, batches: Iterable[EvaluatedBatch]) -> Evaluation:
        """Put together the outcomes of all batches, in their order. Raises `NonFiniteError`: see `evaluate`."""
        all_outputs = [np.empty((0, *self.network.out_shape), self.network.dtype)]  # (B, C) each
        all_labels = [np.empty(0, np.int64)]  # (B,) each
        loss_sum = 0.0
        for batch in batches:
            loss_sum += batch.loss
            all_outputs.append(batch.outputs)
            all_labels.append(batch.labels)
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
