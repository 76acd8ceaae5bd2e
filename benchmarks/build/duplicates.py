"""Recall, false positives and speed of near-duplicate detection, on planted near-duplicates.

    python -m benchmarks.build.duplicates FOLDER [--images N] [--sizes 128 64 32] [--workers N] [--seed N]
    python -m benchmarks.build.duplicates --scale-only [--up-to N] [--workers N] [--seed N]

Plants ten kinds of near-duplicates of up to N images, as JPEG. One is found if it is in its original's group. Originals
that are already grouped are also reported separately: they are the folder's own near-duplicates or false positives,
which only inspection can tell apart (--list prints them). Then times the search on 1,000 to 1,000,000 synthetic
fingerprints.
"""

from __future__ import annotations

import argparse
import io
import resource
import time
import timeit
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from pipeline.duplicates.find import find_duplicates
from pipeline.duplicates.fingerprint import CONTRAST, FINGERPRINT_BYTES, MEAN, NORM, fingerprint
from pipeline.duplicates.matching import CROP_MATRICES
from pipeline.images.decode import decode_pixels

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
QUALITY, POOR_QUALITY = 90, 30
MAX_CROP = 0.06  # maximal fraction of a side that a crop removes at either end

Generator = np.random.Generator
Fingerprints = npt.NDArray[np.uint8]


def resized(image: Image.Image, draw: Generator) -> Image.Image:
    factor = draw.uniform(0.5, 1.5)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def flipped(image: Image.Image, draw: Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def rotated(image: Image.Image, draw: Generator) -> Image.Image:
    rotations = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return image.transpose(rotations[draw.integers(3)])


def inverted(image: Image.Image, draw: Generator) -> Image.Image:
    return ImageOps.invert(image)


def cropped(image: Image.Image, draw: Generator) -> Image.Image:
    left, top, right, bottom = draw.uniform(0, MAX_CROP, 4)
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), width - round(right * width), height - round(bottom * height))
    )


def recoloured(image: Image.Image, draw: Generator) -> Image.Image:
    """One of: hue shift, channel permutation, colour jitter, greyscale."""
    kind = draw.integers(4)
    if kind == 0:
        hue, saturation, value = image.convert("HSV").split()
        angle = int(draw.integers(20, 236))  # of 256
        hue = hue.point([(step + angle) % 256 for step in range(256)])
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if kind == 1:
        orders = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        channels = image.split()
        return Image.merge("RGB", [channels[index] for index in orders[draw.integers(5)]])
    if kind == 2:
        for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
            image = enhance(image).enhance(draw.uniform(0.7, 1.3))
        gamma = draw.uniform(0.7, 1.4)
        return image.point([round(255 * (level / 255) ** gamma) for level in range(256)] * 3)
    return image.convert("L").convert("RGB")


Step = Callable[[Image.Image, Generator], Image.Image]
KINDS: dict[str, tuple[tuple[Step, ...], int]] = {
    "resized": ((resized,), QUALITY),
    "recompressed": ((), POOR_QUALITY),
    "flipped": ((flipped,), QUALITY),
    "rotated": ((rotated,), QUALITY),
    "inverted": ((inverted,), QUALITY),
    "recoloured": ((recoloured,), QUALITY),
    "cropped": ((cropped,), QUALITY),
    "flipped, inverted, recompressed": ((flipped, inverted), POOR_QUALITY),
    "rotated, resized, cropped": ((rotated, resized, cropped), QUALITY),
    "recoloured, cropped, recompressed": ((recoloured, cropped), POOR_QUALITY),
}


def load_image(path: Path) -> Image.Image:
    """The full-size image, transparent pixels on white."""
    with Image.open(path) as image:
        size = ImageOps.exif_transpose(image).size
    return Image.fromarray(decode_pixels(path, size[::-1], "squash"))


def near_duplicate(image: Image.Image, kind: str, draw: Generator) -> bytes:
    steps, quality = KINDS[kind]
    for step in steps:
        image = step(image, draw)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class Fingerprinter:
    """Fingerprints of images fitted into a square, and the seconds spent decoding and fingerprinting."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.decoding = self.fingerprinting = 0.0
        self.rows: list[npt.NDArray[np.uint8]] = []
        self.last = np.empty((1, 1, 3), np.uint8)

    def add(self, source: Path | bytes, size: tuple[int, int]) -> None:
        """Fingerprint an image of `size` (width, height), from which the padding of the square follows."""
        ratio = min(self.side / size[0], self.side / size[1])
        width, height = (max(1, round(length * ratio)) for length in size)
        top, left = (self.side - height) // 2, (self.side - width) // 2
        began = time.perf_counter()
        image = decode_pixels(source, (self.side, self.side), "pad")
        decoded = time.perf_counter()
        self.last = image[top : top + height, left : left + width]
        self.rows.append(fingerprint(self.last))
        self.decoding += decoded - began
        self.fingerprinting += time.perf_counter() - decoded

    def warm(self) -> float:
        """The median time of fingerprinting one image repeatedly, in seconds."""
        return float(np.median(timeit.repeat(lambda: fingerprint(self.last), number=10, repeat=50))) / 10

    def stacked(self) -> Fingerprints:
        return np.stack(self.rows)


def timed(fingerprints: Fingerprints, workers: int) -> tuple[npt.NDArray[np.int64], list[str], float]:
    began = time.perf_counter()
    copies = find_duplicates(fingerprints, workers)
    return copies.representative, copies.transforms, time.perf_counter() - began


def plant_and_find(arguments: argparse.Namespace) -> None:
    paths = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    draw = np.random.default_rng(arguments.seed)
    picked = np.sort(draw.permutation(len(paths))[: arguments.images])
    is_picked = np.isin(np.arange(len(paths)), picked)
    originals = {side: Fingerprinter(side) for side in arguments.sizes}
    planted = {side: Fingerprinter(side) for side in arguments.sizes}
    for index, path in enumerate(paths):
        image = load_image(path)
        for side in arguments.sizes:
            originals[side].add(path, image.size)
        if is_picked[index]:
            for kind in KINDS:
                copy = near_duplicate(image, kind, draw)
                size = Image.open(io.BytesIO(copy)).size
                for side in arguments.sizes:
                    planted[side].add(copy, size)
    for side in arguments.sizes:
        report(side, paths, picked, originals[side], planted[side], arguments)


def report(
    side: int,
    paths: list[Path],
    picked: npt.NDArray[np.int64],
    originals: Fingerprinter,
    planted: Fingerprinter,
    arguments: argparse.Namespace,
) -> None:
    count = len(paths)
    own = originals.stacked()
    lead, how, seconds = timed(own, arguments.workers)
    sizes = Counter(lead.tolist())
    alone = np.array([sizes[group] == 1 for group in lead.tolist()])
    joined = int((lead != np.arange(count)).sum())
    per = 1e3 / count
    print(f"\n{side} px: {count} original images")
    print(f"  decode {originals.decoding * per:.3f} ms per image, fingerprint {originals.fingerprinting * per:.3f} ms "
          f"in between, {originals.warm() * 1e3:.3f} ms in a loop")  # fmt: skip
    print(f"  find_duplicates {seconds:.2f} s: {joined} joined to an earlier image, largest groups "
          f"{[size for _, size in sizes.most_common(5)]}")  # fmt: skip
    if arguments.list:
        for index in np.flatnonzero(lead != np.arange(count)):
            print(f"    {paths[index]}  {how[index]}  {paths[lead[index]]}")
    everything = np.concatenate([own, planted.stacked()])
    lead, how, seconds = timed(everything, arguments.workers)
    found = lead[count:].reshape(len(picked), len(KINDS)) == lead[picked][:, None]  # (images, kinds)
    distinct = alone[picked]  # (images,)
    joined_now = int((lead[:count] != np.arange(count)).sum())
    print(f"  with {found.size} near-duplicates of {len(picked)} images: find_duplicates {seconds:.2f} s, "
          f"{joined_now} originals joined to an earlier one")  # fmt: skip
    for number, kind in enumerate(KINDS):
        found_as = Counter(how[count + number :: len(KINDS)]).most_common(2)
        print(f"    {kind:34}{found[:, number].mean():8.2%}   {', '.join(f'{n}x {w!r}' for w, n in found_as)}")
    print(f"    {'all':34}{found.mean():8.2%}   of {distinct.sum()} ungrouped originals {found[distinct].mean():.2%}")


def synthetic_fingerprints(count: int, draw: Generator) -> tuple[Fingerprints, npt.NDArray[np.int64]]:
    """Synthetic fingerprints (count, FINGERPRINT_BYTES), the last 1 in 20 near-duplicates of the originals (n,).

    Near-duplicates are slightly cropped, half of them flipped, and noisy.
    """
    falling = (1.0 + np.arange(16)) ** -0.4  # (16,)
    copies = count // 20
    result = np.zeros((count, FINGERPRINT_BYTES), np.uint8)
    for start in range(0, count - copies, 4096):
        size = min(4096, count - copies - start)
        grey = draw.standard_normal((size, 1, 16, 16)) * np.outer(falling, falling)  # (n, 1, 16, 16)
        planes = grey + 0.1 * draw.standard_normal((size, 2, 16, 16)) * np.outer(falling, falling)  # (n, 2, 16, 16)
        result[start : start + size, : 2 * 256] = quantised(planes)
    originals = draw.permutation(count - copies)[:copies]
    for start in range(0, copies, 4096):
        chosen = originals[start : start + 4096]
        planes = result[chosen, : 2 * 256].view(np.int8).reshape(-1, 2, 16, 16).astype(np.float64)
        down, across = draw.integers(0, len(CROP_MATRICES) - 8, (2, len(chosen)))  # each end loses 0 to 7 hundredths
        planes = CROP_MATRICES[down][:, None] @ planes @ CROP_MATRICES[across][:, None].swapaxes(-1, -2)
        planes *= np.where(draw.random(len(chosen)) < 0.5, 1.0, -1.0)[:, None, None, None] ** np.arange(16)
        planes += draw.standard_normal(planes.shape) * 2
        result[count - copies + start : count - copies + start + len(chosen), : 2 * 256] = quantised(planes)
    result[:, MEAN] = draw.integers(0, 256, (count, 3))
    result[:, CONTRAST] = 100
    return result, originals


def quantised(planes: npt.NDArray[np.float64]) -> Fingerprints:
    """Quantise planes (n, 2, 16, 16) as fingerprints do: (n, 512)."""
    planes[..., 0, 0] = 0
    planes *= NORM / np.sqrt((planes * planes).sum((2, 3), keepdims=True))
    return np.rint(planes).clip(-127, 127).astype(np.int8).reshape(len(planes), -1).view(np.uint8)


def scale(arguments: argparse.Namespace) -> None:
    print(f"\nsynthetic fingerprints, {arguments.workers} workers")
    print("  images  seconds  us per image   found  false positives  peak MB")
    for count in (1_000, 10_000, 100_000, 1_000_000):
        if count > arguments.up_to:
            break
        fingerprints, originals = synthetic_fingerprints(count, np.random.default_rng(arguments.seed))
        lead, _, seconds = timed(fingerprints, arguments.workers)
        copies = len(originals)
        found = float((lead[count - copies :] == originals).mean())
        wrong = int((lead[: count - copies] != np.arange(count - copies)).sum())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{count:10,} {seconds:8.2f} {seconds / count * 1e6:13.0f} {found:7.2%} {wrong:16} {peak:8}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 64, 32])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--scale-only", action="store_true")
    parser.add_argument("--up-to", type=int, default=100_000)
    arguments = parser.parse_args()
    if not arguments.scale_only:
        if arguments.folder is None:
            parser.error("expected a folder of images or --scale-only")
        plant_and_find(arguments)
    scale(arguments)


if __name__ == "__main__":
    main()
