"""Some images -> their rows of the table. What a thread, or a worker of a cluster, does of a classification.

A task decodes its images and computes them right away, on one core: the pixels are still in its cache, and threads
need not wait for each other.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from cnn.backends import pick_backend
from cnn.inference.predictor import Predictor
from jobs.classification.table import TableOptions, error_row, ok_row
from jobs.errors import JobError
from pipeline.dataset.store import Dataset, Split
from pipeline.errors import DecodeError
from pipeline.images.decode import decode_image, quiet_pillow

Row: TypeAlias = list[str]


@dataclass(frozen=True)
class ClassificationTask:
    """What all tasks of a classification have in common.

    model_hash  of the file at `model`: a worker elsewhere may see another one there
    views       several looks at each image: see cnn.inference.predictor
    batch_size  images computed at a time; decides nothing but memory and speed
    """

    model: Path
    model_hash: str
    device: str
    views: str
    batch_size: int
    options: TableOptions


class FilesBlock(NamedTuple):
    """Files of a folder, by their names relative to it; or one file, by its own name, `folder` being where it lies."""

    folder: str
    names: list[str]


class RowsBlock(NamedTuple):
    """Rows start, start + 1, … of a part of a dataset, along with their names."""

    dataset: Path
    part: str
    start: int
    names: list[str]


class FailuresBlock(NamedTuple):
    """Files that a dataset left out, and why."""

    names: list[str]
    reasons: list[str]


Block: TypeAlias = FilesBlock | RowsBlock | FailuresBlock


def label(task: ClassificationTask, block: Block) -> list[Row]:
    """A row for each name of the block, in its order.

    Raises DamageError where a dataset is damaged, JobError where the model here is another one.
    """
    if isinstance(block, FailuresBlock):
        return [error_row(*failure, task.options.topk) for failure in zip(*block, strict=True)]
    predictor = _predictor_of_thread(task)
    size = predictor.card.in_shape[:2]
    pixels = np.empty((len(block.names), *size, 3), np.uint8)  # (n, H, W, 3)
    reasons: list[str | None] = [None] * len(block.names)
    if isinstance(block, RowsBlock):
        _open_part(block.dataset, block.part).read_into(pixels, block.start, block.start + len(block.names))
    else:
        pixels, reasons = _decode(block, predictor.card.fit, pixels)  # (readable, H, W, 3)
    rankings = iter(_rank(predictor, pixels, task))
    return [
        ok_row(name, next(rankings), task.options)
        if reason is None
        else error_row(name, reason, task.options.topk)
        for name, reason in zip(block.names, reasons, strict=True)
    ]


def _decode(block: FilesBlock, fit: str, pixels: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
    """The files' pixels, one after the other in (n, H, W, 3), less those that cannot be read; why not, or None."""
    reasons: list[str | None] = []
    readable = 0
    with quiet_pillow():
        for name in block.names:
            try:
                decode_image(f"{block.folder}/{name}", pixels.shape[1:3], fit, pixels[readable])
            except DecodeError as error:
                reasons.append(str(error))
            else:
                reasons.append(None)
                readable += 1
    return pixels[:readable], reasons


def _rank(predictor: Predictor, pixels: np.ndarray, task: ClassificationTask) -> list[list[tuple[str, float]]]:
    """The likeliest classes of each image of (n, H, W, 3), with their probabilities, best first."""
    classes = predictor.card.class_names
    ranked = []
    for start in range(0, len(pixels), task.batch_size):
        probabilities = predictor.probabilities(pixels[start : start + task.batch_size])  # float32 (B, C)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : task.options.topk]  # (B, K)
        best = np.take_along_axis(probabilities, order, axis=1)  # (B, K)
        for indices, probs in zip(order.tolist(), best.tolist(), strict=True):
            ranked.append([(classes[index], prob) for index, prob in zip(indices, probs, strict=True)])
    return ranked


# What a process keeps for its next tasks ----------------------------------------------------------------

_of_thread = threading.local()
_of_process: dict[ClassificationTask, Predictor] = {}
_loading = threading.Lock()


def _predictor_of_thread(task: ClassificationTask) -> Predictor:
    if getattr(_of_thread, "labelling", None) != task:
        with _loading:
            if task not in _of_process:
                loaded = _load(task)
                _of_process.clear()  # one model at a time is enough
                _of_process[task] = loaded
            _of_thread.predictor = _of_process[task].for_thread()
            _of_thread.task = task
    predictor: Predictor = _of_thread.predictor
    return predictor


def keep(predictor: Predictor, task: ClassificationTask) -> None:
    """Have the tasks of this process use a predictor that is there already."""
    with _loading:
        _of_process.clear()
        _of_process[task] = predictor


def _load(task: ClassificationTask) -> Predictor:
    model = task.model
    predictor = Predictor(model, pick_backend(task.device), task.views)
    if hash_file(model) != task.model_hash:
        raise JobError(
            f"expected the same model for all of a classification, found another one now, or on this machine, at"
            f" {model}; give a path at which all see the same file"
        )
    return predictor


@cache
def _open_part(dataset: Path, part: str) -> Split:
    data = Dataset.open(dataset)
    return data.train if part == data.train.name else data.val


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_names(names: Sequence[str]) -> str:
    """SHA-256 of strings that may hold bytes that are no UTF-8."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
