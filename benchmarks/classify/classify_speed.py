"""Throughput of `logpose classify` against its own stages and PyTorch, in images per second.

    python -m benchmarks.classify.classify_speed IMAGES MODEL [--peers PYTHON] [--rounds N] [--workers N]

IMAGES is a folder of readable image files, MODEL a model file. All files come from the page cache. Sides are
interleaved, A B C A B C, after one warm-up round, which compiles or loads the kernels; rates are medians over the
rounds, ratios are within a round: above 1, ours is faster. Each side has --workers threads or processes.

    ours            `classify` with its defaults, from listing the files to the finished table
    decode          `decode_image` alone, 32 files at a time; pixels are discarded
    compute, alone  prediction of decoded images: one single-threaded predictor per thread, batches of 32
    compute, team   the same with one predictor whose kernels are multi-threaded, batches of 64
    pytorch         with --peers, an interpreter that has it (see `classify_peer`): a DataLoader and the same network
                    and weights, from listing the files to the finished table

Our sides share one process, PyTorch has its own; one side runs at a time. The bound is the throughput of decoding and
computing one after the other: 1 / (1/decode + 1/compute), with the faster of the two computes. PyTorch resizes
differently, so some labels differ; the fraction of equal labels is reported, and must exceed 97 %.

Run it on an idle machine: the output ends with the load by other processes. The last line is one JSON object.
"""

import argparse
import contextlib
import csv
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.interleave import interleave
from benchmarks.worker import BackgroundLoad, Worker, available_cpus, serve
from cnn.backends import pick_backend
from cnn.checkpoint import load_checkpoint
from cnn.inference.predictor import Predictor
from jobs.classification.classify import classify
from pipeline.images.decode import decode_image
from pipeline.images.opening import quiet_pillow

BLOCK = 32  # images in a task of ours
TEAM_BATCH = 64
PEER_BATCH = 64
MIN_AGREEMENT = 0.97
COMPUTES = ("compute, alone", "compute, team")


class Ours:
    """Our side: the whole job and its stages."""

    def __init__(self, image_folder: Path, model: Path, workers: int) -> None:
        self.image_folder, self.model, self.workers = image_folder, model, workers
        self.files = sorted(str(path) for path in image_folder.rglob("*") if path.is_file())
        self.team = Predictor(model, pick_backend("cpu", workers))
        self.size, self.fit = self.team.card.in_shape[:2], self.team.card.fit
        self.images = np.empty((len(self.files), *self.size, 3), np.uint8)  # (N, H, W, 3)
        self.predictors = [self.team.for_thread() for _ in range(workers)]
        self._by_threads(self._decode_into_images)

    def classify(self, out: str) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            began = time.perf_counter()
            classify(self.image_folder, self.model, Path(out), workers=self.workers, device="cpu")
            return time.perf_counter() - began

    def decode(self) -> float:
        return self._by_threads(self._decode)

    def compute_alone(self) -> float:
        return self._by_threads(self._compute)

    def compute_team(self) -> float:
        began = time.perf_counter()
        for start in range(0, len(self.images), TEAM_BATCH):
            self.team.probabilities(self.images[start : start + TEAM_BATCH])
        return time.perf_counter() - began

    def _by_threads(self, work: Callable[[int, Iterable[int]], None]) -> float:
        """Run work(thread, blocks) on each thread, which share one iterator of blocks; returns seconds."""
        starts = iter(range(0, len(self.files), BLOCK))  # a range iterator is safe to share between threads
        with ThreadPoolExecutor(self.workers) as pool:
            began = time.perf_counter()
            list(pool.map(lambda thread: work(thread, starts), range(self.workers)))
            return time.perf_counter() - began

    def _decode(self, thread: int, starts: Iterable[int]) -> None:
        pixels = np.empty((BLOCK, *self.size, 3), np.uint8)  # (n, H, W, 3)
        for start in starts:
            with quiet_pillow():
                for out, file in zip(pixels, self.files[start : start + BLOCK], strict=False):
                    decode_image(file, self.size, self.fit, out)

    def _decode_into_images(self, thread: int, starts: Iterable[int]) -> None:
        for start in starts:
            for index in range(start, min(start + BLOCK, len(self.files))):
                decode_image(self.files[index], self.size, self.fit, self.images[index])

    def _compute(self, thread: int, starts: Iterable[int]) -> None:
        for start in starts:
            self.predictors[thread].probabilities(self.images[start : start + BLOCK])


def export(model: Path, file: Path) -> None:
    """Export a model file as the .npz that `classify_peer` reads."""
    checkpoint = load_checkpoint(model)
    tensors = checkpoint.tensors | {"card": np.array(json.dumps(asdict(checkpoint.card)))}
    np.savez(file, **tensors)  # type: ignore[arg-type]


def labels_of(table: Path) -> dict[str, str]:
    with table.open(encoding="utf-8", newline="") as file:
        return {row["filename"]: row["label"] for row in csv.DictReader(file)}


def agreement(ours: Path, theirs: Path) -> float:
    """The fraction of images with the same label in both tables."""
    found, others = labels_of(ours), labels_of(theirs)
    if found.keys() != others.keys():
        raise SystemExit(f"{len(found.keys() ^ others.keys())} images are in one table only")
    return float(np.mean([found[name] == others[name] for name in found]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, metavar="IMAGES")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--peers", type=Path, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=available_cpus())
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # run as our side's worker
    arguments = parser.parse_args()
    image_folder, model, workers = arguments.images.resolve(), arguments.model.resolve(), arguments.workers
    if arguments.serve:
        side = Ours(image_folder, model, workers)
        serve({"classify": side.classify, "decode": side.decode, "alone": side.compute_alone, "team": side.compute_team,
               "description": lambda: side.team.backend.description})  # fmt: skip
        return

    files = [path for path in image_folder.rglob("*") if path.is_file()]
    for path in files:
        path.read_bytes()  # into the page cache
    background = BackgroundLoad()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = [str(image_folder), str(model), "--serve", "--workers", str(workers)]
        ours = stack.enter_context(Worker("benchmarks.classify.classify_speed", *options))
        tables = {"ours": folder / "ours.csv", "pytorch": folder / "pytorch.csv"}

        def table(side: str, worker: Worker) -> float:
            tables[side].unlink(missing_ok=True)
            return float(worker.ask("classify", out=str(tables[side])))

        sides: dict[str, Callable[[], float]] = {
            "ours": partial(table, "ours", ours),
            "decode": partial(ours.ask, "decode"),
            COMPUTES[0]: partial(ours.ask, "alone"),
            COMPUTES[1]: partial(ours.ask, "team"),
        }
        described = ours.ask("description")
        if arguments.peers:
            export(model, folder / "model.npz")
            peer = stack.enter_context(
                Worker(
                    "benchmarks.classify.classify_peer", image_folder, folder / "model.npz", PEER_BATCH, workers,
                    python=arguments.peers,
                )
            )
            sides["pytorch"] = partial(table, "pytorch", peer)
            described += f"; PyTorch: {peer.ask('fastest')}, {peer.ask('threads')} threads"
        rates = interleave(sides, dict.fromkeys(sides, len(files)), arguments.rounds)
        same = agreement(tables["ours"], tables["pytorch"]) if arguments.peers else float("nan")
    others = round(background.cores(), 2)

    compute = rates.best(*COMPUTES)
    rates.of["slower part"] = np.minimum(rates.of["decode"], rates.of[compute])  # (rounds,)
    rates.of["bound"] = 1 / (1 / rates.of["decode"] + 1 / rates.of[compute])  # (rounds,)
    print(f"{image_folder}: {len(files):,} files; {workers} workers, {arguments.rounds} rounds; {described}")
    rates.print("ours")
    found = {
        "other_cores": others,
        "rates": {name: round(rates.median(name), 1) for name in rates.of},
        "compute": compute,
        "ours_over": {name: rates.ratio("ours", name) for name in ("slower part", "bound", "pytorch")
                      if name in rates.of},
    }  # fmt: skip
    if arguments.peers:
        found["same_labels"] = round(same, 4)
        print(f"\nlabels equal to PyTorch's: {same:.2%}")
    print(f"cores used by other processes: {others}{': too many for reliable figures' * (others > 0.1)}")
    print(json.dumps(found))
    if same <= MIN_AGREEMENT:
        sys.exit(f"expected over {MIN_AGREEMENT:.0%} of the labels equal to PyTorch's, found {same:.2%}")


if __name__ == "__main__":
    main()
