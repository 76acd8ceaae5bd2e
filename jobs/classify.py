"""A tree of pictures -> a CSV with one row for each file.

Files are decoded in blocks, scheduled by Dask, by the same code and to the same frame as the training
pictures. While one batch is computed, the next ones are decoded. Memory does not grow with the number of
files beyond their names.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np

from cnn.backend import pick_backend
from cnn.predict import Predictor
from jobs.cores import usable_cores
from jobs.errors import JobError
from jobs.progress import bar, plural
from jobs.results import PartedCsv, error_row, header, ok_row
from pipeline.decode import decode_picture
from pipeline.errors import DecodeError
from pipeline.listing import list_files
from pipeline.schedule import connect

FILES_PER_TASK = 16  # large enough that scheduling costs little, small enough to keep all workers busy
ROWS_PER_PART = 512  # at most this much work is lost when a run is killed


class Block(NamedTuple):
    """Some files, decoded: pixels of those that could be read, and for each file why not, or None."""

    images: np.ndarray  # uint8 (readable, H, W, 3)
    reasons: list[str | None]


def classify(
    images: Path,
    model: Path,
    out: Path,
    *,
    topk: int = 1,
    batch_size: int = 64,
    device: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write the labels of every file below `images` to `out`; a finished part of an earlier run is kept."""
    model = model / "model.safetensors" if model.is_dir() else model
    backend = pick_backend(device)
    predictor = Predictor(model, backend)
    card = predictor.card
    known = plural(len(card.class_names), "class", "classes")
    if topk > len(card.class_names):
        raise JobError(f"--topk {topk} asks for more labels than there are: {model} knows {known}; give less")

    files = _without_output(list_files(images), out)
    names = [_relative(path, images) for path in files]
    fingerprint: dict[str, str | int] = {
        "model": _hash_file(model),
        "files": _hash_listing(files, names),
        "--topk": topk,
        "--batch-size": batch_size,
    }
    results = PartedCsv(out, fingerprint, overwrite=overwrite)
    part_rows = max(1, ROWS_PER_PART // batch_size) * batch_size
    parts = [range(*piece) for piece in _cut(range(len(files)), part_rows)]
    todo = [number for number in range(len(parts)) if not results.has(number)]
    done = len(files) - sum(len(parts[number]) for number in todo)

    print(f"{plural(len(files), 'file')} in {images}, model {card.model} with {known}")
    print(backend.description)
    if done:
        print(f"going on: {done:,} of them were classified before")

    batches = [range(*piece) for number in todo for piece in _cut(parts[number], batch_size)]
    size = (card.in_shape[0], card.in_shape[1])
    with (
        _Decoder(files, size, card.fit, workers, scheduler) as decoder,
        bar("classifying", "files", len(files), done=done) as progress,
    ):
        stream = decoder.decoded(batches)
        for number in todo:
            rows: list[list[str]] = []
            while len(rows) < len(parts[number]):
                batch, blocks = next(stream)
                rows += _rows([names[i] for i in batch], blocks, predictor, topk)
                done += len(batch)
                progress.update(done)
            results.write(number, rows)

    counts = [results.count(number) for number in range(len(parts))]
    results.finish(header(topk), len(parts))
    ok, bad = (sum(column) for column in zip(*counts, strict=True))
    unread = f", {plural(bad, 'file')} could not be read (status 'error' in the CSV)" if bad else ""
    print(f"{plural(ok, 'picture')} classified{unread}: {out}")
    return 0


def _rows(names: Sequence[str], blocks: Sequence[Block], predictor: Predictor, topk: int) -> list[list[str]]:
    """One row for each name, in order; unreadable files take no place in the batch but do in the rows."""
    reasons = [reason for block in blocks for reason in block.reasons]
    pixels = np.concatenate([block.images for block in blocks])  # uint8 (readable, H, W, 3)
    classes = predictor.card.class_names
    rankings: Iterator[Any] = iter(())
    if len(pixels):
        probabilities = predictor.probabilities(pixels)  # float32 (readable, C)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :topk]  # (readable, K)
        rankings = iter(zip(order, np.take_along_axis(probabilities, order, axis=1), strict=True))
    rows = []
    for name, reason in zip(names, reasons, strict=True):
        if reason is None:
            best, probs = next(rankings)  # (K,), (K,)
            ranked = [(classes[index], float(prob)) for index, prob in zip(best, probs, strict=True)]
            rows.append(ok_row(name, ranked))
        else:
            rows.append(error_row(name, reason, topk))
    return rows


class _Decoder:
    """Decodes batches of files ahead of the computation, in threads here or on a Dask cluster."""

    def __init__(
        self,
        files: Sequence[Path],
        size: tuple[int, int],
        fit: str,
        workers: int | None,
        scheduler: str | None,
    ) -> None:
        self.files = [path.absolute() for path in files]  # a worker elsewhere has another working folder
        self.size, self.fit = size, fit
        self.workers = workers or usable_cores()
        self.client = connect(scheduler) if scheduler else None
        # Dask's own call blocks until its tasks are done: that wait is for a thread of ours.
        self.waiting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode-ahead")
        self.stopped = False

    def decoded(self, batches: Sequence[range]) -> Iterator[tuple[range, list[Block]]]:
        """Each batch with its blocks. While the caller computes, a group of batches is under way:
        as many as give every worker two tasks."""
        if not batches:
            return
        group = max(1, 2 * self.workers * FILES_PER_TASK // len(batches[0]))
        ahead: deque[tuple[Sequence[range], Future[list[list[Block]]]]] = deque()
        for start in range(0, len(batches) + group, group):
            if members := batches[start : start + group]:
                ahead.append((members, self.waiting.submit(self._compute, members)))
            if len(ahead) > 1 or not members:
                first, future = ahead.popleft()
                yield from zip(first, future.result(), strict=True)

    def _compute(self, batches: Sequence[range]) -> list[list[Block]]:
        """The blocks of each batch. Blocks, not files, are the tasks: a task costs Dask about 0.1 ms."""
        if self.stopped:
            return []
        tasks = [
            [
                dask.delayed(decode_block, pure=False)(self.files[start:stop], self.size, self.fit)
                for start, stop in _cut(batch, FILES_PER_TASK)
            ]
            for batch in batches
        ]
        if self.client:
            (blocks,) = dask.compute(tasks, scheduler=self.client)
        else:
            (blocks,) = dask.compute(tasks, scheduler="threads", num_workers=self.workers)
        return blocks

    def __enter__(self) -> "_Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True
        self.waiting.shutdown(wait=True, cancel_futures=True)
        if self.client:
            self.client.close()


def _cut(rows: range, length: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive pieces of at most `length`."""
    return [(start, min(start + length, rows.stop)) for start in range(rows.start, rows.stop, length)]


def decode_block(paths: Sequence[Path], size: tuple[int, int], fit: str) -> Block:
    """Decode some files; one that cannot be read is a reason, never an exception."""
    pictures: list[np.ndarray] = []
    reasons: list[str | None] = []
    for path in paths:
        try:
            pictures.append(decode_picture(path, size, fit))  # uint8 (H, W, 3)
            reasons.append(None)
        except DecodeError as error:
            reasons.append(f"{error.kind}: {error.reason}")
    return Block(np.stack(pictures) if pictures else np.empty((0, *size, 3), np.uint8), reasons)


def _without_output(files: Sequence[Path], out: Path) -> list[Path]:
    """What was found, less what we write there ourselves when OUT.csv lies among the pictures."""
    own, parts = out.absolute(), out.absolute().with_name(out.name + ".parts")
    kept = [path for path in files if path.absolute() != own and parts not in path.absolute().parents]
    if not kept:
        raise JobError(f"found no file but {out} itself; check the path of the pictures")
    return kept


def _relative(path: Path, root: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_listing(files: Sequence[Path], names: Sequence[str]) -> str:
    """Names, sizes and times: another set of files, or a changed one, has another hash."""
    digest = hashlib.sha256()
    for path, name in zip(files, names, strict=True):
        try:
            status = path.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "gone"
        digest.update(f"{name}\0{state}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
