"""A rehearsal of a training: the calls of a backend that it will make, on arbitrary numbers.

The backend lists the kernels and compiles them beforehand: see `Backend.prepare`.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from cnn.backends.base import OK, Array, KernelProgress
from cnn.inputs.preprocess import preprocess
from cnn.network import Network, foreign_layer
from cnn.training.micro_batches import split_batch
from cnn.training.trainer import Trainer

_EVALUATED = 8  # images: inference has the same kernels for any number


def prepare_training(
    trainer: Trainer, train_rows: int, progress: KernelProgress | None = None, processes: int | None = None
) -> None:
    """Compile what `trainer` needs for an epoch of `train_rows` images and an evaluation, in some processes.

    Nothing of the trainer changes. Does nothing for a user's own layers, losses and optimizers, which may do anything.
    """
    recipe, network = trainer.recipe, trainer.network
    own = all(type(each).__module__.startswith("cnn.") for each in (recipe.loss, recipe.optimizer))
    if own and foreign_layer(network.layer) is None:
        trainer.backend.prepare(partial(_rehearse, trainer, train_rows), progress, processes)


class _Rehearsal(Trainer):
    """A trainer whose steps all make an update: whether the numbers are finite is arbitrary."""

    def _update(self, gradient: Array, lr: float) -> None:
        self._outcome[OK] = 1.0
        super()._update(gradient, lr)


def _rehearse(trainer: Trainer, train_rows: int) -> None:
    """A step with each number of images that an epoch has, and an evaluation, by a trainer of its own."""
    own = trainer.network
    recipe = replace(trainer.recipe, mix=replace(trainer.recipe.mix, share=1.0))  # blended, if any step is
    network = Network(own.layer, own.in_shape, own.backend, seed=None, dtype=own.dtype)
    copy = _Rehearsal(network, recipe, np.zeros(3), np.ones(3), train_rows)
    evaluated = _batch(_EVALUATED, own.in_shape)
    preprocess(own.backend, evaluated[0], None, copy.mean, copy.std)  # of layers that are initialised from images
    for rows in batch_sizes(recipe.batch_size, recipe.micro_rows, train_rows):
        images, labels = _batch(rows, own.in_shape)
        parts = split_batch(images, labels, np.arange(rows), recipe.micro_rows)
        copy.start_update(copy.compute(parts, rows))  # whose result is never asked for
    copy.evaluation(copy.evaluate_batches([evaluated], recipe.views))


def batch_sizes(batch: int, micro_batch: int, rows: int) -> list[int]:
    """Numbers of images, of which a step has every kind of micro-batch of an epoch of `rows` images.

    A kernel may depend on the number of images in a micro-batch, but not on that of micro-batches, two or more.
    """
    sizes = {batch} if rows >= batch else set[int]()
    sizes |= {rows % batch} - {0}
    return sorted({min(size, 2 * micro_batch + size % micro_batch) for size in sizes}, reverse=True)


def _batch(rows: int, in_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images (rows, H, W, 3) and classes (rows,)."""
    return np.zeros((rows, *in_shape), np.uint8), np.zeros(rows, np.int64)
