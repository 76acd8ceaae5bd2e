"""Other libraries' data loaders: the peers of `loader`.

    PYTHON -m benchmarks.loader.loader_peers files FOLDER SIZE BATCH WORKERS
    PYTHON -m benchmarks.loader.loader_peers pixels PIXELS.npy BATCH WORKERS
    PYTHON -m benchmarks.loader.loader_peers ffcv PIXELS.npy BATCH WORKERS

PYTHON is an interpreter with Pillow, PyTorch and, for FFCV, ffcv 1.0.2; imports only `benchmarks`. A worker: see
`benchmarks.worker`.

    files   PyTorch's DataLoader on the image files: Pillow opens, converts to RGB, resizes bicubically and pads
    pixels  the same on decoded pixels uint8 (N, H, W, 3) in a memory map
    ffcv    FFCV's Loader on those pixels, written raw by its DatasetWriter, in its two orders: `random`, from the
            system's page cache, and `quasi`, from FFCV's own

All are shuffled and return uint8 tensors (B, H, W, 3) from persistent workers, whose start is not timed.
"""

import argparse
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.build.build_peers import Images, decode_padded
from benchmarks.worker import serve


class Pixels:
    """An indexable dataset of (image, label), all labels 0."""

    def __init__(self, file: Path) -> None:
        self._images = np.load(file, mmap_mode="c")  # (N, H, W, 3); writable, as PyTorch requires

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.asarray(self._images[index]), 0


def writable(path: str, size: int) -> np.ndarray:
    """`decode_padded` as a writable array, as PyTorch requires: (size, size, 3)."""
    return np.array(decode_padded(path, size))


def dataloader(data: Any, batch: int, workers: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    # Persistent: do not restart the processes in every epoch.
    return DataLoader(data, batch, shuffle=True, num_workers=workers, persistent_workers=True)


def ffcv_loaders(file: Path, batch: int, workers: int) -> dict[str, Iterable[Any]]:
    """One loader for each order, on a .beton file written here."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor
    from ffcv.writer import DatasetWriter

    beton, data = str(file.with_suffix(".beton")), Pixels(file)
    side = max(data[0][0].shape[:2])
    fields = {"image": RGBImageField(write_mode="raw", max_resolution=side), "label": IntField()}
    DatasetWriter(beton, fields, num_workers=workers).from_indexed_dataset(data)
    orders = {"random": (OrderOption.RANDOM, True), "quasi": (OrderOption.QUASI_RANDOM, False)}
    return {
        name: Loader(
            beton, batch, workers, os_cache, order, drop_last=False, seed=0,
            pipelines={
                "image": [SimpleRGBImageDecoder(), ToTensor()],
                "label": [IntDecoder(), ToTensor(), Squeeze()],
            },
        )
        for name, (order, os_cache) in orders.items()
    }  # fmt: skip


def epoch(loaders: dict[str, Iterable[Any]], order: str = "random") -> dict[str, float]:
    """Read all batches of an epoch; returns the number of images and seconds."""
    began, count = time.perf_counter(), 0
    for images, _ in loaders[order]:
        count += len(images)
    return {"images": count, "seconds": time.perf_counter() - began}


def total(loaders: dict[str, Iterable[Any]], order: str = "random") -> int:
    """The sum of all pixels of an epoch, to check the batches' contents."""
    return sum(int(images.sum()) for images, _ in loaders[order])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("files", "pixels", "ffcv"))
    parser.add_argument("source", type=Path)
    parser.add_argument("numbers", type=int, nargs="+", metavar="[SIZE] BATCH WORKERS")
    arguments = parser.parse_args()
    peer, source = arguments.peer, arguments.source
    *size, batch, workers = arguments.numbers
    if peer == "ffcv":
        loaders = ffcv_loaders(source, batch, workers)
    else:
        data = Pixels(source) if peer == "pixels" else Images(source, size[0], writable)
        loaders = {"random": dataloader(data, batch, workers)}
    serve({"epoch": partial(epoch, loaders), "total": partial(total, loaders)})


if __name__ == "__main__":
    main()
