"""Trainings by 1, 2, 4, … ranks, each on a card of its own while there are enough, else two on one card."""

import subprocess
import sys
import time
from pathlib import Path

import cupy
import numpy as np
from PIL import Image

from benchmarks.gpu.record import STANDIN, Record
from benchmarks.worker import ROOT
from cnn.checkpoint import load_checkpoint
from jobs.training.ranks.record import read_ranks

IMAGES, SIDE, EPOCHS = (64, 8, 2) if STANDIN else (8192, 32, 4)
LANES, BATCH = 8, (16 if STANDIN else 1024)  # micro-batches of a batch, and images
SECONDS = 20  # that a training takes at least: the next one is left out where less is left


def scaling(record: Record) -> None:
    """Images per second in the last epoch, the time of the exchanges, and whether the weights are those of one rank."""
    cards = int(cupy.cuda.runtime.getDeviceCount())
    counts = [count for count in (1, 2, 4, 8) if count <= max(cards, 2)]
    data = record.folder / "ranks.zarr"
    draw(record.folder / "ranks_images")
    command("build", record.folder / "ranks_images", data, "--size", SIDE, "--overwrite")
    weights: dict[str, np.ndarray] = {}
    for count in counts:
        if record.left() < SECONDS:
            return
        run, began = record.folder / f"ranks_{count}", time.perf_counter()
        told = command(
            *("train", data, run, "--overwrite", "--device", "cuda", "--model", "resnet9", "--ranks", count),
            *("--batch-size", BATCH, "--set", f"train.micro_batch={BATCH // LANES}", "--epochs", EPOCHS),
            *(("--set", "model.width=4") if STANDIN else ()),
        )
        found = load_checkpoint(run / "last.safetensors").tensors
        weights = weights or found
        times = [row.times for row in read_ranks(run / "ranks.csv") if row.epoch == EPOCHS]
        steps = -(-sum(each.images for each in times) // BATCH)
        record.add("ranks", f"{count} on {cards} cards", {
            "images_per_s": round(sum(each.images for each in times) / max(each.seconds for each in times)),
            # Of a rank, from the last launch of its own work: so it includes the rest of that.
            "exchange_ms_per_step": round(1e3 * np.mean([each.exchange_seconds for each in times]) / steps, 3),
            "sent_MB_per_step": round(np.mean([each.sent_megabytes for each in times]) / steps, 3),
            "over_nccl": "sums over NCCL" in " ".join(told.split()),
            "same_weights_as_1": all(np.array_equal(found[name], weights[name]) for name in weights),
            "seconds_in_all": round(time.perf_counter() - began, 1),
        })  # fmt: skip


def draw(folder: Path) -> None:
    """Draw random images of ten classes."""
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / f"{number % 10}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)  # (H, W, 3)


def command(*arguments: object) -> str:
    """Run a command line of logpose; return what it prints."""
    line = [sys.executable, "-m", "logpose", *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}: {done.stderr[-2000:]}")
    return done.stdout
