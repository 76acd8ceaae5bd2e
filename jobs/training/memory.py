"""Explain that a GPU has too little memory for a training step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cnn.errors import DeviceMemoryError, is_cuda_error, release_frames
from cnn.training.memory_limit import largest_batch
from cnn.training.trainer import Trainer


@contextmanager
def explain_memory(trainer: Trainer, remedy: Callable[[str], str]) -> Iterator[None]:
    """Raise DeviceMemoryError where the block runs out of GPU memory.

    `remedy` is given an option, such as '--batch-size 32', with which a step fits, and returns what to do.
    """
    try:
        yield
    except MemoryError as error:
        if not is_cuda_error(error):
            raise
        release_frames(error)
        name, used, divided = trainer.backend.device_name, trainer.recipe.micro_rows, trainer.recipe.is_divided
        size = largest_batch(trainer, used)
        if size:
            option = remedy(f"--set train.micro_batch={size}" if divided else f"--batch-size {size}")
        else:
            option = "not even one image fits: use a smaller model, build with a smaller --size, or use --device cpu"
        tried = f"with micro-batches of {used}" if divided else f"with batches of {used}"
        raise DeviceMemoryError(f"out of memory on {name} {tried} images; {option}") from None
