"""Build and open datasets from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jobs.datasets.build import build as build_job
from logpose.arguments import checked_options, checked_path, running
from pipeline.build.options import BuildOptions
from pipeline.dataset.store import Dataset
from pipeline.images.options import MAX_PIXELS


def build(
    images: str | Path,
    dataset: str | Path,
    *,
    size: int | tuple[int, int] | str = 128,
    fit: Literal["pad", "crop", "squash"] = "pad",
    depth: int | tuple[float, float] | str | None = None,
    max_pixels: int | str = MAX_PIXELS,
    val: float = 0.1,
    seed: int = 0,
    group_copies: bool = True,
    codec: Literal["none", "lz4", "zstd"] = "none",
    workers: int | None = None,
    scheduler: str | None = None,
    max_failures: int | float | str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Dataset:
    """Decode and resize a folder of class folders into a dataset, and open it.

    A build that was interrupted resumes; a finished one of the same images and options is opened as it is. Images that
    cannot be read are left out and listed in `failures.csv` inside the dataset; near-duplicates in `duplicates.csv`.

    Args:
        images: One folder per class, or `train/` and `val/` (or `test/`) with one folder per class each.
        dataset: Folder to write, by convention ending in `.zarr`.
        size: Pixels of every stored image: a side, (height, width), or text as on the command line ("160x120").
        fit: Add a border ("pad"), cut off ("crop") or distort ("squash") to get there.
        depth: Of grey of more than 8 bits, the values that become black and white: (black, white), a number of bits
            such as 12 for (0, 4095), or text as on the command line; None: by a sample of the images.
        max_pixels: Images of more pixels are refused: they would take too much memory.
        val: Fraction of each class for validation, where the folders do not say.
        seed: Seed of the split and of the order of rows.
        group_copies: Find near-duplicates and keep each group of them in one split.
        codec: Compression of the pixels.
        workers: Threads that decode; None: one per CPU.
        scheduler: Address of a Dask cluster to work on instead.
        max_failures: Unreadable files to accept: a count (int), a fraction (float), or text such as "5%"; None: any.
        overwrite: Replace a finished dataset.
        quiet: Print nothing.

    Raises:
        LogposeError: The folder is not laid out as classes, an option is out of its range, the destination holds
            something else, or the work failed.

    >>> data = logpose.build("images", "colours.zarr", size=16, val=0.2, quiet=True)
    >>> len(data.train), len(data.val), data.class_names
    (48, 12, ('blue', 'green', 'red'))
    """
    options = checked_options(
        BuildOptions, size=(size, size) if hasattr(size, "__index__") else size, fit=fit, val=val, seed=seed,
        depth=_depth_text(depth), max_pixels=max_pixels,
        group_copies=group_copies, codec=codec, workers=workers, scheduler=scheduler, max_failures=max_failures,
        overwrite=overwrite,
    )  # fmt: skip
    path = checked_path("dataset", dataset)
    with running(quiet):
        build_job(checked_path("images", images), path, options)
        return Dataset.open(path)


def _depth_text(depth: Any) -> Any:
    """The depth as on the command line; other types are left for the check of the options."""
    if isinstance(depth, tuple | list) and len(depth) == 2:
        return f"{depth[0]}..{depth[1]}"
    return str(depth) if hasattr(depth, "__index__") and not isinstance(depth, bool) else depth


def open(path: str | Path) -> Dataset:
    """Open a finished dataset.

    Its splits, `data.train` and `data.val`, have a length and are indexed by a row, a slice or an array of rows.

    Raises:
        LogposeError: There is no dataset, it is unfinished, or it is damaged.

    >>> data = logpose.open("colours.zarr")
    >>> image, label, path = data.train[0]
    >>> image.shape, image.dtype, data.class_names[label] == path.split("/")[0]
    ((16, 16, 3), dtype('uint8'), True)
    >>> images, labels, paths = data.train[:32]
    >>> images.shape, labels.shape, len(paths)
    ((32, 16, 16, 3), (32,), 32)
    """
    with running(quiet=True):
        return Dataset.open(checked_path("path", path))
