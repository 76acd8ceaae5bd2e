"""Time `BatchStream` alone beside a memory map, the kernel's own copying, and other libraries: images a second.

    python -m benchmarks.loader.loader DATASET.zarr [--repeat N] [--images FOLDER] [--peers PYTHON]
                                 [--rounds N] [--batch N] [--workers N]

One epoch of the training part, shuffled, everything in the page cache; the consumer takes the batches and does nothing
with them. `--repeat` writes the rows N times into a dataset of their own: it should be well beyond the processor's
cache and many windows long. Sides take turns, A B C A B C, after one round to warm up; medians are over the rounds,
ratios of ours to the others within a round: above 1, ours is faster.

    ours          `BatchStream.epoch`, with that many workers: every chunk's checksum is verified
    ours, kept    the same with a RAM budget that has room for all pixels, which a mapped file takes too, as page cache
    map, take     the same pixels in one file, mapped into memory; the same rows in the same batches, gathered with
                  `np.take` into a reused array, by one thread, as people do it
    map, [rows]   the same by indexing with the rows, which makes a new array each time
    floor         the dataset's shards read in pieces of a chunk, in random order, by as many threads, into a buffer
                  each, and nothing else: what the kernel's copying allows
    files, pixels, ffcv random, ffcv quasi    with --peers, an interpreter that has them (see `loader_peers`), a process
                  each, with as many workers; `files` with --images only. None of them checks what it reads

Then where the time of our threads went, a gigabyte of pixels: what is left is waiting, for each other's lock, at the
start of an epoch for the first window, for the plan of the next, and for the consumer to give a window back.

Datasets go to the system's folder for temporary files. Run it on a quiet machine: the end says how busy other
processes were. The last line is one JSON object.
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

from benchmarks.turns import Peer, in_turns
from benchmarks.worker import Neighbours, available_cpus
from pipeline.dataset.schema import layout
from pipeline.dataset.store import Dataset, Split, shard_file
from pipeline.dataset.writer import create_dataset, seal, write_shard
from pipeline.loader.epoch_order import EpochOrder, window_chunks
from pipeline.loader.reader import StreamTimes
from pipeline.loader.stream import BatchStream

SEED = 0
KEPT = "ours, kept"
MAPS = ("map, take", "map, [rows]")
FFCV = {"ffcv random": "random", "ffcv quasi": "quasi"}


def repeated(dataset: Dataset, times: int, path: Path) -> Dataset:
    """A dataset whose training part has that of the other so many times over, and whose validation part is empty."""
    images = dataset.train.read(0, dataset.train.rows)  # (N, H, W, 3)
    rows = np.tile(np.arange(len(images)), times)  # (times N,)
    create_dataset(path, replace(dataset.attributes, sealed=False), {"train": len(rows), "val": 0})
    shard_rows = layout(len(rows), dataset.size).shard_rows
    for shard, start in enumerate(range(0, len(rows), shard_rows)):
        write_shard(path, "train", shard, images[rows[start : start + shard_rows]])
    labels = {"train": dataset.train.labels[rows], "val": np.empty(0, np.int64)}
    seal(path, dataset.attributes, labels, {"train": [dataset.train.paths[row] for row in rows], "val": []})
    return Dataset.open(path)


def write_pixels(part: Split, file: Path) -> None:
    """The pixels of a part in one .npy file, uint8 (N, H, W, 3)."""
    pixels = np.lib.format.open_memmap(file, "w+", np.uint8, (part.rows, *part.size, 3))
    step = part.layout.shard_rows
    for start in range(0, part.rows, step):
        pixels[start : start + step] = part.read(start, min(start + step, part.rows))
    pixels.flush()


class Ours:
    """Our stream, and what its threads have done in the timed rounds."""

    def __init__(self, part: Split, batch: int, workers: int, ram_budget: int | None = None) -> None:
        self.stream = BatchStream(part, batch, seed=SEED, workers=workers, ram_budget=ram_budget)
        self.turns: list[tuple[float, StreamTimes]] = []
        # Recorded for the memory map, which gathers the same rows.
        self.batches = [batch.rows.copy() for batch in self.stream.epoch(0)]

    def epoch(self) -> float:
        before, began = self.stream.times, time.perf_counter()
        for _ in self.stream.epoch(0):
            pass
        seconds = time.perf_counter() - began
        self.turns.append((seconds, self.stream.times.since(before)))
        return seconds

    def accounts(self, rounds: int) -> dict[str, float]:
        """Seconds a gigabyte of pixels, medians over the last rounds: of the consumer's wait, and of the readers."""
        part = self.stream.split
        gigabytes = part.rows * part.size[0] * part.size[1] * 3 / 1e9
        steps = np.array([
            (times.wait, times.read, times.decode, times.copy, self.stream.workers * seconds - sum(times[1:]), seconds)
            for seconds, times in self.turns[-rounds:]
        ])  # fmt: skip  # (rounds, 6)
        names = ("consumer waits", "reading", "checking", "placing", "left of the threads", "the whole epoch")
        found = dict(zip(names, np.median(steps, axis=0) / gigabytes, strict=True))
        return found | {"planning, in a thread more": self.planning() / gigabytes}

    def planning(self) -> float:
        """Seconds that it takes to plan the windows of an epoch."""
        part = self.stream.split
        chunks = window_chunks(part.rows, part.chunk_rows, part.size[0] * part.size[1] * 3, shuffle=True)
        began = time.perf_counter()
        plan = EpochOrder(part.rows, part.chunk_rows, chunks, SEED, 0, shuffle=True)
        for index in range(plan.windows):
            plan.window(index)
        return time.perf_counter() - began


class MemoryMap:
    """The batches of recorded rows out of a mapped file."""

    def __init__(self, file: Path, batches: list[np.ndarray]) -> None:
        self.pixels = np.load(file, mmap_mode="r").view(np.ndarray)  # (N, H, W, 3)
        self.batches = batches
        self.out = np.empty((max(map(len, batches)), *self.pixels.shape[1:]), np.uint8)  # (B, H, W, 3)

    def take(self) -> float:
        began = time.perf_counter()
        for rows in self.batches:
            # Any mode but "raise" lets NumPy write right into `out`.
            np.take(self.pixels, rows, axis=0, out=self.out[: len(rows)], mode="clip")
        return time.perf_counter() - began

    def index(self) -> float:
        began = time.perf_counter()
        for rows in self.batches:
            self.pixels[rows]
        return time.perf_counter() - began


class Floor:
    """Reads the shards of a part with bare calls of the system."""

    def __init__(self, part: Split, workers: int) -> None:
        self.workers = workers
        self.piece = part.chunk_rows * part.size[0] * part.size[1] * 3  # bytes
        files = [shard_file(part.path, part.name, shard) for shard in range(part.shards)]
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
    """The same rows must have the same pixels on both sides; returns the sum of all."""
    total = 0
    for batch in ours.stream.epoch(0):
        if (batch.images != mapped.pixels[batch.rows]).any():
            raise SystemExit("the memory map has other pixels than the dataset")
        total += int(batch.images.sum(dtype=np.int64))
    return total


def check_total(peer: Peer, total: int, **options: str) -> None:
    found = peer.ask("total", **options)
    if found != total:
        raise SystemExit(f"a peer's pixels add up to {found}, ours to {total}: not the same images")


def ask_epoch(peer: Peer, images: int, **options: str) -> float:
    answer = peer.ask("epoch", **options)
    if answer["images"] != images:
        raise SystemExit(f"a peer gave {answer['images']} images of {images}")
    return float(answer["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, metavar="DATASET.zarr")
    parser.add_argument("--repeat", type=int, default=1, metavar="N")
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=available_cpus())
    arguments = parser.parse_args()
    batch, workers, rounds = arguments.batch, arguments.workers, arguments.rounds

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dataset = Dataset.open(arguments.dataset)
        if arguments.repeat > 1:
            dataset = repeated(dataset, arguments.repeat, folder / "repeated.zarr")
        part, file = dataset.train, folder / "pixels.npy"
        write_pixels(part, file)
        ours = Ours(part, batch, workers)
        mapped = MemoryMap(file, ours.batches)
        total = check_same(ours, mapped)
        kept = Ours(part, batch, workers, ram_budget=2**40)
        sides: dict[str, Callable[[], float]] = {
            "ours": ours.epoch, KEPT: kept.epoch, MAPS[0]: mapped.take, MAPS[1]: mapped.index,
            "floor": Floor(part, workers).read,
        }  # fmt: skip
        images = dict.fromkeys([*sides, "pixels", *FFCV], part.rows)
        neighbours = Neighbours()
        with ExitStack() as peers:
            if arguments.peers:
                start = partial(Peer, arguments.peers, "benchmarks.loader.loader_peers")
                if arguments.images:
                    files = [path for path in arguments.images.glob("*/**/*") if path.is_file()]
                    images["files"] = len(files)
                    for path in files:
                        path.read_bytes()  # into the page cache
                    peer = peers.enter_context(start("files", arguments.images, max(part.size), batch, workers))
                    sides["files"] = partial(ask_epoch, peer, len(files))
                for kind, orders in (("pixels", {"pixels": "random"}), ("ffcv", FFCV)):
                    peer = peers.enter_context(start(kind, file, batch, workers))
                    for name, order in orders.items():
                        check_total(peer, total, order=order)
                        sides[name] = partial(ask_epoch, peer, part.rows, order=order)
            rates = in_turns(sides, images, rounds)
        others = round(neighbours.cores(), 2)

    gigabytes = part.rows * part.size[0] * part.size[1] * 3 / 1e9
    print(
        f"{part.rows:,} images of {part.size[0]}x{part.size[1]}, {gigabytes:.2f} GB, batches of {batch}, {workers} "
        f"workers, {rounds} rounds; in memory {ours.stream.ram_bytes / 1e6:.0f} MB"
    )
    rates.print("ours")
    accounts = ours.accounts(rounds)
    print(f"\n{'ours':27} seconds a GB, of {workers} threads")
    for name, seconds in accounts.items():
        print(f"{name:27} {seconds:.3f}")
    best = {"map": rates.best(*MAPS)} | ({"ffcv": rates.best(*FFCV)} if arguments.peers else {})
    over = {name: rates.ratio("ours", best.get(name, name)) for name in ("floor", "map", "files", "pixels", "ffcv")
            if best.get(name, name) in rates.of}  # fmt: skip
    over[f"map, {KEPT}"] = rates.ratio(KEPT, best["map"])
    print(f"\nours over the better of each kind: {', '.join(f'{name} {ratio:.2f}' for name, ratio in over.items())}")
    print(f"cores that other processes kept busy meanwhile: {others}{', too many to trust these' * (others > 0.1)}")
    print(json.dumps({
        "other_cores": others, "rows": part.rows, "gigabytes": round(gigabytes, 3), "ours_over": over,
        "rates": {name: round(rates.median(name)) for name in rates.of},
        "seconds_a_gb": {name: round(seconds, 4) for name, seconds in accounts.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
