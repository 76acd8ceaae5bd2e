"""Option `--cache`: the training images in the memory of a GPU, copied there once."""

from math import prod

from cnn.backends.base import AugmentingBackend, Backend
from cnn.inputs.device_images import DeviceImages
from cnn.training.recipe import Recipe
from jobs.console.progress import bar
from jobs.errors import JobError
from pipeline.dataset.store import Split
from pipeline.loader.stream import BatchStream

AUTO_FRACTION = 0.5  # of the free memory: the rest is for the network
_COPY_BYTES = 8 * 2**20  # at a time


def is_cached(cache: str, backend: Backend, split: Split) -> bool:
    """Whether to keep the images of `split` in the device's memory; `cache` is 'auto', 'device' or 'none'.

    Raises JobError for 'device' where they do not fit, or without a GPU that augments images itself.
    """
    free = backend.free_bytes() if isinstance(backend, AugmentingBackend) else None
    if cache == "none" or (cache == "auto" and free is None):
        return False
    size = prod(_shape(split))
    if free is None:
        raise JobError(
            f"--cache device: expected a GPU of compute capability 8.0 or newer, found {backend.description}; use"
            " --cache auto"
        )
    if cache == "device" and size > free:
        raise JobError(
            f"--cache device: expected {_size(size)} of free memory for the {split.rows:,} training images, found"
            f" {_size(free)}; use --cache auto, or build with a smaller --size"
        )
    return cache == "device" or size <= AUTO_FRACTION * free


def cached_stream(
    split: Split, recipe: Recipe, workers: int, backend: Backend, lanes: range | None = None
) -> BatchStream:
    """The batches of `recipe`, of images that are first copied to the device. Raises DamageError, DeviceError.

    `lanes` are the micro-batches to take, None for all.
    """
    images = DeviceImages(backend, _shape(split))
    rows = max(1, _COPY_BYTES // prod(_shape(split)[1:]))
    reader = BatchStream(split, rows, seed=recipe.seed, shuffle=False, workers=workers)
    with bar("copying to the GPU", "images", split.rows, ends=False) as progress:
        for batch in reader:
            first = int(batch.rows[0])  # rows are in stored order
            images.fill(first, batch.images)
            progress.update(first + len(batch.rows))
    return BatchStream(
        split, recipe.batch_size, seed=recipe.seed, micro_batch=recipe.micro_batch, lanes=lanes, workers=workers,
        images_of=images.take,
    )  # fmt: skip


def describe_cache(split: Split) -> str:
    """Return where the images are, as text."""
    return f"the {_size(prod(_shape(split)))} of training images are kept in the GPU's memory"


def _shape(split: Split) -> tuple[int, int, int, int]:
    return split.rows, *split.size, 3


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
