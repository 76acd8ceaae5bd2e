"""The classification task: decode some images, predict, return table rows. Runs on a thread or a cluster worker.

On a CPU, a task decodes its images and predicts them right away on one core: the pixels are still in its cache, and
threads do not wait for each other. A cluster's worker with a GPU runs one task at a time, so that other threads decode
the task's images, while the GPU computes those that are decoded: see `worker.py`.
"""

import hashlib
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from cnn.backends import pick_backend
from cnn.inference.predictor import Predictor
from cnn.models import import_model
from jobs.classification.table import error_row, ok_row
from jobs.errors import JobError, gpu_errors
from jobs.options import ClassifyOptions
from pipeline.dataset.generation import Generation, check_generation
from pipeline.dataset.store import Dataset, Split
from pipeline.errors import DecodeError
from pipeline.images.decode import decode_image
from pipeline.images.opening import quiet_pillow
from pipeline.images.options import DecodeOptions

Row: TypeAlias = list[str]

_LOST = (-1, 0)  # size and time of a file without a status


@dataclass(frozen=True)
class TaskSettings:
    """What all tasks of a classification share.

    model_hash  SHA-256 of the file at `model`: another machine may have another file there
    """

    model: Path
    model_hash: str
    options: ClassifyOptions


class FileTask(NamedTuple):
    """Files of a folder, by their names relative to it.

    lost  indices of those that had no status when they were listed, as links to nothing
    """

    folder: str
    names: list[str]
    lost: frozenset[int] = frozenset()


class RowTask(NamedTuple):
    """Rows start, start + 1, … of a split of a dataset, with their file names.

    generation  of the dataset where the classification began
    """

    dataset: Path
    generation: Generation
    split: str
    start: int
    names: list[str]


class FailureTask(NamedTuple):
    """Files that a dataset left out, and the reasons."""

    names: list[str]
    reasons: list[str]


Task: TypeAlias = FileTask | RowTask | FailureTask


def classify_task(settings: TaskSettings, task: Task) -> list[Row]:
    """Return a row for each name of the task, in its order.

    Raises DamageError where a dataset is damaged, ReadError where the system fails to read an image, JobError where the
    model is not the same file on this machine, DeviceFailedError and DeviceMemoryError where a GPU fails or has too
    little memory.
    """
    with gpu_errors(lambda: "finished parts are saved; run the same command again to resume"):
        return classify_rows(settings, task)


def classify_rows(settings: TaskSettings, task: Task, decoders: int = 0) -> list[Row]:
    """`classify_task` with the GPU's own errors. 0 decoders: decode in this thread, before the network computes."""
    options = settings.options
    if isinstance(task, FailureTask):
        return [error_row(*failure, options.topk) for failure in zip(*task, strict=True)]
    predictor = thread_predictor(settings)
    pixels = np.empty((len(task.names), *predictor.card.in_shape[:2], 3), np.uint8)  # (n, H, W, 3)
    read = partial(_read, task, predictor.card.fit, DecodeOptions(predictor.card.depth, options.max_pixels), pixels)
    step = _open_split(task.dataset, task.generation, task.split).chunk_rows if isinstance(task, RowTask) else 1
    reasons: list[str | None] = []  # of the rows that are read so far
    rankings: list[list[tuple[str, float]]] = []  # of those that are readable, and computed
    computed = 0
    with quiet_pillow(options.max_pixels), closing(_read_ahead(read, len(pixels), step, decoders)) as spans:
        for span in spans:
            reasons += span
            if len(reasons) - computed >= options.batch_size or len(reasons) == len(pixels):
                images = pixels[computed : len(reasons)]  # (b, H, W, 3)
                readable = [reason is None for reason in reasons[computed:]]
                rankings += _rank(predictor, images if all(readable) else images[readable], options)
                computed = len(reasons)
    ranking = iter(rankings)
    return [
        ok_row(name, next(ranking), options) if reason is None else error_row(name, reason, options.topk)
        for name, reason in zip(task.names, reasons, strict=True)
    ]


def _read(
    task: FileTask | RowTask, fit: str, decoding: DecodeOptions, pixels: np.ndarray, start: int, stop: int
) -> list[str | None]:
    """Read rows start..stop-1 of the task into those of `pixels` (n, H, W, 3).

    Returns for each the reason why it cannot be read, or None.
    """
    if isinstance(task, RowTask):
        split = _open_split(task.dataset, task.generation, task.split)
        split.read_into(pixels[start:stop], task.start + start, task.start + stop)
        return [None] * (stop - start)
    reasons: list[str | None] = []
    for row in range(start, stop):
        unchanged = _LOST if row in task.lost else None
        try:
            decode_image(f"{task.folder}/{task.names[row]}", pixels.shape[1:3], fit, pixels[row], unchanged, decoding)
        except DecodeError as error:
            reasons.append(str(error))
        else:
            reasons.append(None)
    return reasons


def _read_ahead(
    read: Callable[[int, int], list[str | None]], rows: int, step: int, decoders: int
) -> Generator[list[str | None], None, None]:
    """Yield the results of `read` for all rows, in order, read in spans of `step` by as many threads as `decoders`.

    With 0 decoders, all rows are one span, and are read here.
    """
    if not decoders:
        yield read(0, rows)
        return
    pool = _pool(decoders)
    spans = [pool.submit(read, start, min(start + step, rows)) for start in range(0, rows, step)]
    try:
        for span in spans:
            yield span.result()
    finally:
        for span in spans:  # after an error
            span.cancel()


def _rank(predictor: Predictor, pixels: np.ndarray, options: ClassifyOptions) -> list[list[tuple[str, float]]]:
    """Return the most likely classes of each image of (n, H, W, 3) with their probabilities, best first."""
    classes = predictor.card.class_names
    ranked = []
    for start in range(0, len(pixels), options.batch_size):
        probabilities = predictor.probabilities(pixels[start : start + options.batch_size])  # float32 (B, C)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : options.topk]  # (B, K)
        best = np.take_along_axis(probabilities, order, axis=1)  # (B, K)
        for indices, probs in zip(order.tolist(), best.tolist(), strict=True):
            ranked.append([(classes[index], prob) for index, prob in zip(indices, probs, strict=True)])
    return ranked


# Cached by each process and thread for its next tasks --------------------------------------------------

_thread_cache = threading.local()
_process_cache: dict[TaskSettings, Predictor] = {}
_loading = threading.Lock()


def thread_predictor(settings: TaskSettings) -> Predictor:
    """Return this thread's predictor. The model is loaded once per process."""
    if getattr(_thread_cache, "settings", None) != settings:
        with _loading:
            if settings not in _process_cache:
                loaded = _load(settings)
                _process_cache.clear()  # one model at a time is enough
                _process_cache[settings] = loaded
            _thread_cache.predictor = _process_cache[settings].for_thread()
            _thread_cache.settings = settings
    predictor: Predictor = _thread_cache.predictor
    return predictor


def cache_predictor(predictor: Predictor, settings: TaskSettings) -> None:
    """Have the tasks of this process use a predictor that is already loaded."""
    with _loading:
        _process_cache.clear()
        _process_cache[settings] = predictor


def _load(settings: TaskSettings) -> Predictor:
    model, options = settings.model, settings.options
    if options.model:
        import_model(options.model)
    predictor = Predictor(model, pick_backend(options.device, precision=options.precision), options.views)
    if predictor.digest != settings.model_hash:
        raise JobError(
            f"expected the same model throughout a classification, found another one now, or on this machine, at"
            f" {model}; give a path at which all machines see the same file"
        )
    return predictor


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """One for all tasks of the process: with two tasks at a time, one's images are decoded while the other ends."""
    return ThreadPoolExecutor(threads, "logpose-decode")


@lru_cache(maxsize=2)  # both splits of one dataset; another generation is opened again
def _open_split(dataset: Path, generation: Generation, split: str) -> Split:
    data = Dataset.open(dataset)
    check_generation(dataset, generation)
    return data.train if split == data.train.name else data.val


def hash_names(names: Sequence[str]) -> str:
    """Return the SHA-256, in hex, of file names, which may hold bytes that are not valid UTF-8."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
