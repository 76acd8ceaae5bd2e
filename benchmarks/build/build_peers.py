"""Other libraries turn a folder of images into one file of pixels: what `build_speed` puts beside `logpose build`.

    PYTHON benchmarks/build/build_peers.py PEER FOLDER OUT SIZE WORKERS

PYTHON is an interpreter with Pillow and PyTorch and, for FFCV, ffcv 1.0.2; nothing of logpose is imported. Prints one
line of JSON: images and seconds, from listing the folder to the closed file, without imports. PEER is one of

    ffcv        FFCV's DatasetWriter, raw RGB; images come from Pillow: JPEG draft and resize as logpose does them
    ffcv-area   the same, but Pillow only decodes, and FFCV shrinks (OpenCV's area average), as its own examples do
    dataloader  PyTorch's DataLoader; Pillow opens, converts to RGB and resizes bicubically, as torchvision does; the
                main process writes the batches into a uint8 memory map and flushes it

Proportions are kept. A memory map needs one shape, so there white fills the frame. All images must be readable.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH = 64


def within(image: tuple[int, int], size: int) -> tuple[int, int]:
    """The image's (W, H) in proportion, its longer side `size`."""
    ratio = size / max(image)
    return max(1, round(image[0] * ratio)), max(1, round(image[1] * ratio))


def decoded(path: str, size: int) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))  # (h, w, 3)


def drafted(path: str, size: int) -> np.ndarray:
    with Image.open(path) as image:
        to = within(image.size, size)
        image.draft(None, (2 * to[0], 2 * to[1]))
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(rgb.resize(to, Image.Resampling.BICUBIC, reducing_gap=3.0))  # (h, w, 3)


def framed(path: str, size: int) -> np.ndarray:
    with Image.open(path) as image:
        small = image.convert("RGB").resize(within(image.size, size), Image.Resampling.BICUBIC)
    if small.size == (size, size):
        return np.asarray(small)  # (size, size, 3)
    frame = Image.new("RGB", (size, size), (255, 255, 255))
    frame.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return np.asarray(frame)  # (size, size, 3)


class Images:
    """An indexable dataset of (image, label): class folders, all files in them."""

    def __init__(self, folder: Path, size: int, decode: Callable[[str, int], np.ndarray]) -> None:
        classes = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
        self._files = [
            (f"{where}/{name}", label)
            for label, path in enumerate(classes)
            for where, _, names in os.walk(path)
            for name in sorted(names)
        ]
        self._size, self._decode = size, decode

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self._files[index]
        return self._decode(path, self._size), label


def with_ffcv(decode: Callable[[str, int], np.ndarray]) -> Callable[..., int]:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    def write(folder: Path, out: Path, size: int, workers: int) -> int:
        dataset_ = Images(folder, size, decode)
        fields = {"image": RGBImageField(write_mode="raw", max_resolution=size), "label": IntField()}
        DatasetWriter(str(out), fields, num_workers=workers).from_indexed_dataset(dataset_)
        return len(dataset_)

    return write


def with_dataloader() -> Callable[..., int]:
    from torch.utils.data import DataLoader

    def write(folder: Path, out: Path, size: int, workers: int) -> int:
        dataset_: Any = Images(folder, size, framed)
        pixels = np.memmap(out, np.uint8, "w+", shape=(len(dataset_), size, size, 3))
        labels = np.empty(len(dataset_), np.int64)  # (N,)
        start = 0
        for images, batch_labels in DataLoader(dataset_, BATCH, num_workers=workers):
            pixels[start : start + len(images)] = images.numpy()  # (n, size, size, 3)
            labels[start : start + len(images)] = batch_labels.numpy()  # (n,)
            start += len(images)
        pixels.flush()
        np.save(out.with_suffix(".labels.npy"), labels)
        return start

    return write


PEERS: dict[str, Callable[[], Callable[..., int]]] = {
    "ffcv": lambda: with_ffcv(drafted),
    "ffcv-area": lambda: with_ffcv(decoded),
    "dataloader": with_dataloader,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("size", type=int)
    parser.add_argument("workers", type=int)
    arguments = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        write = PEERS[arguments.peer]()
        began = time.perf_counter()
        dataset_ = write(arguments.folder, arguments.out, arguments.size, arguments.workers)
        seconds = time.perf_counter() - began
    print(json.dumps({"images": dataset_, "seconds": seconds}))


if __name__ == "__main__":
    main()
