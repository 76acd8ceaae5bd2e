"""Other libraries' conversion of an image folder to one file of pixels: the peers of `build_speed`.

    PYTHON benchmarks/build/build_peers.py PEER FOLDER OUT SIZE WORKERS

PYTHON is an interpreter with Pillow, PyTorch and, for FFCV, ffcv 1.0.2; imports nothing of logpose. Prints one line of
JSON: images, and seconds from listing the folder to closing the file, without imports. PEER is one of

    ffcv        FFCV's DatasetWriter, raw RGB; Pillow decodes and resizes as logpose does (JPEG draft, bicubic)
    ffcv-area   the same, but Pillow only decodes, and FFCV shrinks (OpenCV's area average), as in its examples
    dataloader  PyTorch's DataLoader; Pillow decodes and resizes bicubically, as in torchvision; the main process writes
                the batches to a uint8 memory map and flushes it

Aspect ratios are preserved; the memory map needs one shape, so images there are padded with white. All images must be
readable.
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


def scaled_size(image: tuple[int, int], size: int) -> tuple[int, int]:
    """(W, H) scaled so that the longer side is `size`."""
    ratio = size / max(image)
    return max(1, round(image[0] * ratio)), max(1, round(image[1] * ratio))


def decode(path: str, size: int) -> np.ndarray:
    """The full-size image, (h, w, 3); `size` is ignored."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))  # (h, w, 3)


def decode_draft(path: str, size: int) -> np.ndarray:
    """The image resized to a longer side of `size`, decoded at reduced size where JPEG allows it: (h, w, 3)."""
    with Image.open(path) as image:
        small = scaled_size(image.size, size)
        image.draft(None, (2 * small[0], 2 * small[1]))
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(rgb.resize(small, Image.Resampling.BICUBIC, reducing_gap=3.0))  # (h, w, 3)


def decode_padded(path: str, size: int) -> np.ndarray:
    """The resized image, padded with white: (size, size, 3)."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize(scaled_size(image.size, size), Image.Resampling.BICUBIC)
    if small.size == (size, size):
        return np.asarray(small)  # (size, size, 3)
    frame = Image.new("RGB", (size, size), (255, 255, 255))
    frame.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return np.asarray(frame)  # (size, size, 3)


class Images:
    """An indexable dataset of (image, label) from class folders."""

    def __init__(self, folder: Path, size: int, decode: Callable[[str, int], np.ndarray]) -> None:
        classes = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
        self._files = [
            (f"{root}/{name}", label)
            for label, path in enumerate(classes)
            for root, _, names in os.walk(path)
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
        dataset = Images(folder, size, decode)
        fields = {"image": RGBImageField(write_mode="raw", max_resolution=size), "label": IntField()}
        DatasetWriter(str(out), fields, num_workers=workers).from_indexed_dataset(dataset)
        return len(dataset)

    return write


def with_dataloader() -> Callable[..., int]:
    from torch.utils.data import DataLoader

    def write(folder: Path, out: Path, size: int, workers: int) -> int:
        dataset: Any = Images(folder, size, decode_padded)
        pixels = np.memmap(out, np.uint8, "w+", shape=(len(dataset), size, size, 3))
        labels = np.empty(len(dataset), np.int64)  # (N,)
        start = 0
        for images, batch_labels in DataLoader(dataset, BATCH, num_workers=workers):
            pixels[start : start + len(images)] = images.numpy()  # (n, size, size, 3)
            labels[start : start + len(images)] = batch_labels.numpy()  # (n,)
            start += len(images)
        pixels.flush()
        np.save(out.with_suffix(".labels.npy"), labels)
        return start

    return write


PEERS: dict[str, Callable[[], Callable[..., int]]] = {
    "ffcv": lambda: with_ffcv(decode_draft),
    "ffcv-area": lambda: with_ffcv(decode),
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
        count = write(arguments.folder, arguments.out, arguments.size, arguments.workers)
        seconds = time.perf_counter() - began
    print(json.dumps({"images": count, "seconds": seconds}))


if __name__ == "__main__":
    main()
