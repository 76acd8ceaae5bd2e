"""Throughput of `logpose build` against bare Pillow and other libraries, in images per second.

    python -m benchmarks.build.build_speed [--images FOLDER ...] [--photos FOLDER] [--peers PYTHON] [--rounds N]
                                      [--size N] [--threads N]

The inputs are the given folders, with one subfolder per class, and 4,000 synthetic photos of 500x375 pixels, generated
once. Sides are interleaved, A B C A B C, after one warm-up round; rates are medians over the rounds, ratios are within
a round: above 1, ours is faster. All files come from the page cache. One side runs at a time, with equal numbers of
threads or worker processes.

    logpose     `build_dataset` with its defaults, in this process: from listing the folder to the sealed dataset,
                including checksums and fsync, without imports
    ungrouped   the same with --no-group-copies
    limit       bare Pillow in a thread pool: open, JPEG draft to at least twice the size, convert to RGB, bicubic
                resize with a reducing gap of 3; the result is discarded
    decode      `decode_pixels` in the same pool
    ffcv, ffcv-area, dataloader    with --peers, an interpreter that has them (see `build_peers`), in a new process,
                without imports; none of them verifies its files, writes checksums or is crash-safe, and FFCV does not
                wait for the disk

Then, for each folder, the total time of the command `logpose build`, and a profile of a build with one worker; the main
thread works in parallel with it, so "the rest" is a lower bound. All images must be readable. Datasets go to the
system's temporary folder. Run it on an idle machine: the output ends with the load by other processes. The last line is
one JSON object.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.worker import ROOT, BackgroundLoad, available_cpus
from pipeline.build.build import build_dataset
from pipeline.build.options import BuildOptions
from pipeline.images.decode import decode_pixels

PEERS = ("ffcv", "ffcv-area", "dataloader")
TASK_FILES = 32  # files in a task, so that the pool's overhead of 20 µs is negligible

PHOTOS, PHOTO_CLASSES, PHOTO_SIZE = 4000, 10, (500, 375)

# The profile's steps and their functions; functions that do not exist or are not called are omitted.
STEPS = {
    "listing": ("pipeline.build.build.list_images",),
    "stat of each file, split": ("pipeline.build.build.stat_files",),
    "decode": ("pipeline.build.shard_task.decode_image",),
    "fingerprint": ("pipeline.build.shard_task.fingerprints",),
    "sums": ("pipeline.build.shard_task._sums",),
    "digest": ("pipeline.build.shard_task.shard_digest",),
    "encode, write": ("pipeline.build.shard_task.write_shard",),
    "fsync": ("os.fsync",),
    "duplicates": ("pipeline.build.rounds.find_duplicates",),
    "create": ("pipeline.build.build.create_dataset",),
    "seal": ("pipeline.build.build.seal",),
}


# Synthetic photos -------------------------------------------------------------------------------------------


def make_photos(folder: Path, threads: int) -> None:
    """Write PHOTOS deterministic photo-like JPEGs to class folders, unless they exist."""
    if (folder / "whole").exists():
        return
    print(f"making {PHOTOS:,} photos in {folder}", file=sys.stderr)
    for label in range(PHOTO_CLASSES):
        (folder / "photos" / f"class{label}").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    clouds = np.stack([cloud(rng) for _ in range(12)])  # (12, 1024, 1024)
    with ThreadPoolExecutor(threads) as pool:
        for number, image in enumerate(pool.map(partial(photo, clouds), range(PHOTOS))):
            path = folder / "photos" / f"class{number % PHOTO_CLASSES}" / f"{number:04}.jpg"
            path.write_bytes(image)
    (folder / "whole").touch()


def cloud(rng: np.random.Generator) -> np.ndarray:
    """1/f noise, as in photographs: (1024, 1024), mean 0, std 1."""
    spectrum = np.fft.rfft2(rng.standard_normal((1024, 1024)))  # (1024, 513)
    frequency = np.hypot(np.fft.fftfreq(1024)[:, None], np.fft.rfftfreq(1024)[None])  # (1024, 513)
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(spectrum / frequency)  # (1024, 1024)
    return (noise / noise.std()).astype(np.float32)


def photo(clouds: np.ndarray, number: int) -> bytes:
    """A JPEG of a gradient and random shapes, with coloured noise from `clouds` (n, 1024, 1024)."""
    rng = np.random.default_rng((1, number))
    width, height = PHOTO_SIZE
    corners = Image.fromarray(rng.integers(30, 226, (2, 2, 3), np.uint8))
    scene = corners.resize(PHOTO_SIZE, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(scene)
    for _ in range(rng.integers(6, 16)):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(10, width // 2), rng.integers(10, height // 2)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.6 else draw.rectangle
        shape((x - w // 2, y - h // 2, x + w // 2, y + h // 2), colour)
    pixels = np.asarray(scene).astype(np.float32)  # (H, W, 3)
    for strength in (15.0, 6.0, 4.0):
        top, left = rng.integers(0, 1024 - height), rng.integers(0, 1024 - width)
        noise = clouds[rng.integers(len(clouds)), top : top + height, left : left + width]  # (H, W)
        pixels += noise[..., None] * (strength * rng.uniform(0.4, 1.0, 3)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# Sides --------------------------------------------------------------------------------------------


class Bench:
    """One folder, and the sides that convert it."""

    def __init__(self, folder: Path, size: int, threads: int, peers: Path | None) -> None:
        self.folder, self.size, self.threads, self.peers = folder, size, threads, peers
        self.files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.bytes = sum(len(path.read_bytes()) for path in self.files)  # into the page cache
        self.sides: dict[str, Callable[[], float]] = {
            "logpose": self.logpose,
            "ungrouped": lambda: self.logpose(group_copies=False),
            "limit": lambda: self.loop(self.bare),
            "decode": lambda: self.loop(lambda path: decode_pixels(path, (size, size), "pad")),
        }
        if peers:
            self.sides |= {name: partial(self.peer, name) for name in PEERS}

    def logpose(self, group_copies: bool = True) -> float:
        """Run a build; returns seconds."""
        options = replace(self.options(self.threads), group_copies=group_copies)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            build_dataset(self.folder, Path(folder, "d.zarr"), options)
            return time.perf_counter() - began

    def options(self, workers: int) -> BuildOptions:
        return BuildOptions(size=(self.size, self.size), workers=workers)

    def loop(self, work: Callable[[Path], object]) -> float:
        """Call `work` for each file in a thread pool; returns seconds."""

        def do(start: int) -> None:
            for path in self.files[start : start + TASK_FILES]:
                work(path)

        with ThreadPoolExecutor(self.threads) as pool:
            began = time.perf_counter()
            list(pool.map(do, range(0, len(self.files), TASK_FILES)))
            return time.perf_counter() - began

    def bare(self, path: Path) -> None:
        with Image.open(path) as image:
            ratio = self.size / max(image.size)
            width, height = (max(1, round(side * ratio)) for side in image.size)
            image.draft(None, (2 * width, 2 * height))
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            rgb.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)

    def peer(self, name: str) -> float:
        """Run a peer; returns seconds without imports, or NaN, with a message, if it fails."""
        with tempfile.TemporaryDirectory() as folder:
            script, out = ROOT / "benchmarks/build/build_peers.py", Path(folder, "out")
            command = [self.peers, script, name, self.folder, out, self.size, self.threads]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            print(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return float("nan")
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer["images"] != len(self.files):
            raise SystemExit(f"{name} wrote {answer['images']} images of {len(self.files)}")
        return float(answer["seconds"])

    def command(self) -> float:
        """Run the command `logpose build`; returns seconds, imports included."""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "logpose", "build", str(self.folder), f"{folder}/d.zarr"]
            began = time.perf_counter()
            subprocess.run([*command, "--size", str(self.size), "--workers", str(self.threads)],
                           check=True, cwd=ROOT, capture_output=True)  # fmt: skip
            return time.perf_counter() - began


# Profile ----------------------------------------------------------------------------------


class Clock:
    """Exclusive time of each step in seconds, over all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._local = threading.local()

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **named: Any) -> Any:
            above = getattr(self._local, "inner", 0.0)
            self._local.inner = 0.0
            began = time.perf_counter()
            try:
                return function(*values, **named)
            finally:
                spent = time.perf_counter() - began
                self.seconds[step] += spent - self._local.inner
                self._local.inner = above + spent

        return run


def print_profile(bench: Bench) -> dict[str, float]:
    """Profile a build with one worker; prints and returns microseconds per image by step."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for step, names in STEPS.items():
            for module, _, name in (full.rpartition(".") for full in names):
                function = getattr(import_module(module), name, None)
                if function is not None:
                    stack.enter_context(patch(f"{module}.{name}", clock.timed(step, function)))
        began = time.perf_counter()
        build_dataset(bench.folder, Path(folder, "d.zarr"), bench.options(1))
        total = time.perf_counter() - began
    steps = clock.seconds | {"the rest": total - sum(clock.seconds.values())}
    print(f"\nlogpose on one thread, {bench.folder}: {total:.2f} s\n{'':26} {'µs per image':>12} {'of all':>7}")
    for step, seconds in steps.items():
        print(f"{step:26} {seconds / len(bench.files) * 1e6:12.1f} {seconds / total:7.1%}")
    return {step: round(seconds / len(bench.files) * 1e6, 1) for step, seconds in steps.items()}


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Compare all sides; prints a table and returns the medians."""
    times: dict[str, list[float]] = {name: [] for name in bench.sides}
    for number in range(-1, rounds):
        for name, side in bench.sides.items():
            os.sync()  # so that no side waits for the previous one's writes
            seconds = side()
            if number >= 0:  # the first round is a warm-up
                times[name].append(seconds)
        print(f"{bench.folder.name}: round {number + 1} of {rounds}", file=sys.stderr)
    count = len(bench.files)
    print(f"\n{bench.folder}: {count:,} files of {bench.bytes / count / 1e3:.1f} kB on average")
    print(f"{'':11} {'images/s':>10}  {'range':15}  {'ours / this':>11}  {'range':13}")
    found: dict[str, Any] = {}
    for name, seconds in times.items():
        rates = count / np.array(seconds)  # (rounds,)
        ratios = np.array(seconds) / np.array(times["logpose"])  # (rounds,)
        print(
            f"{name:11} {np.median(rates):10.0f}  {rates.min():6.0f} to {rates.max():5.0f}  {np.median(ratios):11.3f}  "
            f"{ratios.min():5.3f} to {ratios.max():5.3f}"
        )
        found[name] = {"rate": round(float(np.median(rates)), 1), "ours_over": round(float(np.median(ratios)), 3)}
    seconds = bench.command()
    print(f"\nthe command `logpose build`: {seconds:.2f} s, {count / seconds:.0f} images/s")
    return found | {"command_s": round(seconds, 2), "profile_us": print_profile(bench)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--photos", type=Path, default=Path(tempfile.gettempdir(), "logpose-photos"), metavar="FOLDER")
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=available_cpus())
    arguments = parser.parse_args()
    make_photos(arguments.photos, arguments.threads)
    os.sync()

    began, background, found = time.perf_counter(), BackgroundLoad(), {}
    print(f"{arguments.threads} threads, {arguments.rounds} rounds, {arguments.size} px")
    for folder in [*arguments.images, arguments.photos / "photos"]:
        bench = Bench(folder, arguments.size, arguments.threads, arguments.peers)
        found[str(folder)] = measure(bench, arguments.rounds)
    others = round(background.cores(), 2)
    print(
        f"\ntook {time.perf_counter() - began:.0f} s; cores used by other processes: {others}"
        f"{': too many for reliable figures' if others > 0.1 else ''}"
    )
    print(json.dumps({"other_cores": others, "folders": found}))


if __name__ == "__main__":
    main()
