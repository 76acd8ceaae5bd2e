"""Find a size of batches, or micro-batches, whose training step fits in the memory of the device."""

import numpy as np

from cnn.errors import is_cuda_error, release_frames
from cnn.layers import Run
from cnn.training.trainer import Trainer


def largest_batch(trainer: Trainer, below: int) -> int:
    """Return the first of `below` / 2, `below` / 4, … 1 images that a step has memory for; 0 if there is none.

    Tries forward and backward passes. Changes neither the weights nor the network's state.
    """
    backend, state = trainer.backend, trainer.network.state.flat  # (state size,)
    before = backend.to_host(state)  # batch norm's running statistics change with every pass
    size = below // 2
    while size and not _fits(trainer, size):
        size //= 2
    state[...] = backend.asarray(before)
    return size


def _fits(trainer: Trainer, size: int) -> bool:
    network, backend = trainer.network, trainer.backend
    images = np.zeros((size, *network.in_shape), np.uint8)  # (B, H, W, 3)
    try:
        x, targets, rows = trainer.inputs(images, np.zeros(size, np.int64), np.arange(size), 0, 0)
        outputs, cache = network.forward(Run(backend, training=True, key=0, rows=rows, need_dx=False), x)  # (B, C)
        gradient = trainer.recipe.loss.forward(backend, outputs, targets, size).gradient  # (B, C)
        network.backward(Run(backend, training=True, key=0, rows=rows, need_dx=False), cache, gradient)
    except MemoryError as error:
        if not is_cuda_error(error):
            raise
        release_frames(error)
        return False
    return True
