"""Throughput of `BatchStream` against a memory map, bare reads and other libraries, in images per second.

    python -m benchmarks.loader.loader DATASET.zarr [--repeat N] [--images FOLDER] [--peers PYTHON]
                                 [--rounds N] [--batch N] [--micro-batch N] [--workers N]

Times one shuffled epoch of the training split from the page cache; the consumer discards the batches. `--repeat` writes
the rows N times to a new dataset, which should exceed the processor's cache and have many windows. Sides are
interleaved, A B C A B C, after one warm-up round; rates are medians over the rounds, ratios are within a round: above
1, ours is faster.

    ours          `BatchStream.epoch` with --workers threads; every chunk's checksum is verified
    ours, cached  the same with a RAM budget for all pixels; a mapped file takes as much, as page cache
    ours, lanes   with --micro-batch: the micro-batches of each step, out of a lane each
    map, take     the same pixels in one memory-mapped file; the same batches, gathered with `np.take` into a reused
                  array by one thread
    map, [rows]   the same with fancy indexing, which allocates each batch
    floor         the dataset's shards read with preadv, in random pieces of a chunk's size, by --workers threads, each
                  into one buffer: the limit set by the kernel's copying
    files, pixels, ffcv random, ffcv quasi    with --peers, an interpreter that has them (see `loader_peers`), in a
                  process each with --workers workers; `files` with --images only. None of them verifies its input

Then reports where our threads' time goes, per gigabyte of pixels: the remainder is waiting for the GIL, for an epoch's
first window, for the next window's order, and for the consumer to release a window.

Datasets go to the system's temporary folder. Run it on an idle machine: the output ends with the load by other
processes. The last line is one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.interleave import interleave
from benchmarks.worker import BackgroundLoad, Worker, available_cpus
from pipeline.dataset.schema import layout
from pipeline.dataset.store import Dataset, Split, shard_file
from pipeline.dataset.writer import create_dataset, seal, write_shard
from pipeline.loader.epoch_order import EpochOrder, window_chunks
from pipeline.loader.reader import StreamTimes
from pipeline.loader.stream import BatchStream

SEED = 0
CACHED = "ours, cached"
LANES = "ours, lanes"
MAPS = ("map, take", "map, [rows]")
FFCV = {"ffcv random": "random", "ffcv quasi": "quasi"}


def repeated(dataset: Dataset, times: int, path: Path) -> Dataset:
    """A dataset with the training rows of `dataset`, repeated, and an empty validation split."""
    images = dataset.train.read(0, dataset.train.rows)  # (N, H, W, 3)
    rows = np.tile(np.arange(len(images)), times)  # (times N,)
    create_dataset(path, replace(dataset.attributes, sealed=False), {"train": len(rows), "val": 0})
    shard_rows = layout(len(rows), dataset.size).shard_rows
    for shard, start in enumerate(range(0, len(rows), shard_rows)):
        write_shard(path, "train", shard, images[rows[start : start + shard_rows]])
    labels = {"train": dataset.train.labels[rows], "val": np.empty(0, np.int64)}
    seal(path, dataset.attributes, labels, {"train": [dataset.train.paths[row] for row in rows], "val": []})
    return Dataset.open(path)


def write_pixels(split: Split, file: Path) -> None:
    """Write the pixels of a split to one .npy file, uint8 (N, H, W, 3)."""
    pixels = np.lib.format.open_memmap(file, "w+", np.uint8, (split.rows, *split.size, 3))
    step = split.layout.shard_rows
    for start in range(0, split.rows, step):
        pixels[start : start + step] = split.read(start, min(start + step, split.rows))
    pixels.flush()


class Ours:
    """Our stream, with the time and thread times of each epoch."""

    def __init__(
        self, split: Split, batch: int, workers: int, ram_budget: int | None = None, micro_batch: int = 0
    ) -> None:
        self.stream = BatchStream(
            split, batch, seed=SEED, micro_batch=micro_batch, workers=workers, ram_budget=ram_budget
        )
        self.epochs: list[tuple[float, StreamTimes]] = []
        # For the memory map, which gathers the same rows.
        self.batches = [batch.rows.copy() for batch in self.stream.epoch(0)]

    def epoch(self) -> float:
        before, began = self.stream.times, time.perf_counter()
        for _ in self.stream.epoch(0):
            pass
        seconds = time.perf_counter() - began
        self.epochs.append((seconds, self.stream.times.since(before)))
        return seconds

    def micro_batches(self) -> float:
        began = time.perf_counter()
        for _ in self.stream.micro_batches(0):
            pass
        return time.perf_counter() - began

    def thread_seconds(self, rounds: int) -> dict[str, float]:
        """Seconds per gigabyte of pixels, medians over the last rounds: the consumer's wait, and the readers' steps."""
        part = self.stream.split
        gigabytes = part.rows * part.size[0] * part.size[1] * 3 / 1e9
        steps = np.array([
            (times.wait, times.read, times.decode, times.copy, self.stream.workers * seconds - sum(times[1:]), seconds)
            for seconds, times in self.epochs[-rounds:]
        ])  # fmt: skip  # (rounds, 6)
        names = ("consumer waits", "reading", "checking", "placing", "rest of the threads", "whole epoch")
        found = dict(zip(names, np.median(steps, axis=0) / gigabytes, strict=True))
        return found | {"planning, a task of its own": self.planning() / gigabytes}

    def planning(self) -> float:
        """Plan the windows of an epoch; returns seconds."""
        part = self.stream.split
        chunks = window_chunks(part.rows, part.chunk_rows, part.size[0] * part.size[1] * 3, shuffle=True)
        began = time.perf_counter()
        (lane,) = EpochOrder(part.rows, part.chunk_rows, chunks, SEED, 0, shuffle=True).lanes
        for index in range(lane.windows):
            lane.window(index)
        return time.perf_counter() - began


class MemoryMap:
    """The batches of recorded rows, from a memory-mapped file."""

    def __init__(self, file: Path, batches: list[np.ndarray]) -> None:
        self.pixels = np.load(file, mmap_mode="r").view(np.ndarray)  # (N, H, W, 3)
        self.batches = batches
        self.out = np.empty((max(map(len, batches)), *self.pixels.shape[1:]), np.uint8)  # (B, H, W, 3)

    def take(self) -> float:
        began = time.perf_counter()
        for rows in self.batches:
            # Mode "raise" would buffer the output.
            np.take(self.pixels, rows, axis=0, out=self.out[: len(rows)], mode="clip")
        return time.perf_counter() - began

    def index(self) -> float:
        began = time.perf_counter()
        for rows in self.batches:
            self.pixels[rows]
        return time.perf_counter() - began


class Floor:
    """Reads the shards of a split with bare system calls."""

    def __init__(self, split: Split, workers: int) -> None:
        self.workers = workers
        self.piece = split.chunk_rows * split.size[0] * split.size[1] * 3  # bytes
        files = [shard_file(split.path, split.name, shard) for shard in range(split.shards)]
        pieces = [(file, offset) for file in files for offset in range(0, file.stat().st_size, self.piece)]
        self.pieces = [pieces[index] for index in np.random.default_rng(SEED).permutation(len(pieces))]

    def read(self) -> float:
        with ExitStack() as stack, ThreadPoolExecutor(self.workers) as pool:
            files = {file: stack.enter_context(file.open("rb", buffering=0)) for file, _ in self.pieces}
            todo = deque((files[file].fileno(), offset) for file, offset in self.pieces)
            buffers = [np.zeros(self.piece, np.uint8) for _ in range(self.workers)]

            def work(buffer: np.ndarray) -> None:
                while todo:
                    try:
                        number, offset = todo.popleft()
                    except IndexError:  # another thread was faster
                        return
                    os.preadv(number, [buffer], offset)

            began = time.perf_counter()
            list(pool.map(work, buffers))
            return time.perf_counter() - began


def check_same(ours: Ours, mapped: MemoryMap) -> int:
    """Check that both sides have the same pixels; returns their sum."""
    total = 0
    for batch in ours.stream.epoch(0):
        if (batch.images != mapped.pixels[batch.rows]).any():
            raise SystemExit("the memory map and the dataset have different pixels")
        total += int(batch.images.sum(dtype=np.int64))
    return total


def check_total(peer: Worker, total: int, **options: str) -> None:
    found = peer.ask("total", **options)
    if found != total:
        raise SystemExit(f"a peer's pixels sum to {found}, ours to {total}: not the same images")


def ask_epoch(peer: Worker, images: int, **options: str) -> float:
    answer = peer.ask("epoch", **options)
    if answer["images"] != images:
        raise SystemExit(f"a peer returned {answer['images']} images of {images}")
    return float(answer["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, metavar="DATASET.zarr")
    parser.add_argument("--repeat", type=int, default=1, metavar="N")
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=0, metavar="N")
    parser.add_argument("--workers", type=int, default=available_cpus())
    arguments = parser.parse_args()
    batch, workers, rounds = arguments.batch, arguments.workers, arguments.rounds

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dataset = Dataset.open(arguments.dataset)
        if arguments.repeat > 1:
            dataset = repeated(dataset, arguments.repeat, folder / "repeated.zarr")
        split, file = dataset.train, folder / "pixels.npy"
        write_pixels(split, file)
        ours = Ours(split, batch, workers)
        mapped = MemoryMap(file, ours.batches)
        total = check_same(ours, mapped)
        cached = Ours(split, batch, workers, ram_budget=2**40)
        sides: dict[str, Callable[[], float]] = {
            "ours": ours.epoch, CACHED: cached.epoch, MAPS[0]: mapped.take, MAPS[1]: mapped.index,
            "floor": Floor(split, workers).read,
        }  # fmt: skip
        if arguments.micro_batch:
            sides[LANES] = Ours(split, batch, workers, micro_batch=arguments.micro_batch).micro_batches
        images = dict.fromkeys([*sides, "pixels", *FFCV], split.rows)
        background = BackgroundLoad()
        with ExitStack() as peers:
            if arguments.peers:
                start = partial(Worker, "benchmarks.loader.loader_peers", python=arguments.peers)
                if arguments.images:
                    files = [path for path in arguments.images.glob("*/**/*") if path.is_file()]
                    images["files"] = len(files)
                    for path in files:
                        path.read_bytes()  # into the page cache
                    peer = peers.enter_context(start("files", arguments.images, max(split.size), batch, workers))
                    sides["files"] = partial(ask_epoch, peer, len(files))
                for kind, orders in (("pixels", {"pixels": "random"}), ("ffcv", FFCV)):
                    peer = peers.enter_context(start(kind, file, batch, workers))
                    for name, order in orders.items():
                        check_total(peer, total, order=order)
                        sides[name] = partial(ask_epoch, peer, split.rows, order=order)
            rates = interleave(sides, images, rounds)
        others = round(background.cores(), 2)

    gigabytes = split.rows * split.size[0] * split.size[1] * 3 / 1e9
    print(
        f"{split.rows:,} images of {split.size[0]}x{split.size[1]}, {gigabytes:.2f} GB, batches of {batch}, {workers} "
        f"workers, {rounds} rounds; in memory {ours.stream.ram_bytes / 1e6:.0f} MB"
    )
    rates.print("ours")
    thread_seconds = ours.thread_seconds(rounds)
    print(f"\n{'ours':27} seconds per GB, {workers} threads")
    for name, seconds in thread_seconds.items():
        print(f"{name:27} {seconds:.3f}")
    best = {"map": rates.best(*MAPS)} | ({"ffcv": rates.best(*FFCV)} if arguments.peers else {})
    over = {name: rates.ratio("ours", best.get(name, name)) for name in ("floor", "map", "files", "pixels", "ffcv")
            if best.get(name, name) in rates.of}  # fmt: skip
    over[f"map, {CACHED}"] = rates.ratio(CACHED, best["map"])
    print(f"\nours over the fastest of each kind: {', '.join(f'{name} {ratio:.2f}' for name, ratio in over.items())}")
    print(f"cores used by other processes: {others}{': too many for reliable figures' * (others > 0.1)}")
    print(json.dumps({
        "other_cores": others, "rows": split.rows, "gigabytes": round(gigabytes, 3), "ours_over": over,
        "rates": {name: round(rates.median(name)) for name in rates.of},
        "seconds_a_gb": {name: round(seconds, 4) for name, seconds in thread_seconds.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
