"""Classify a folder of images, or a dataset, into a table with one row per image.

    inputs ──tasks──▶ decode and predict ──rows, in order──▶ finished parts ──▶ OUT.csv

All stages run at once: one thread lists the files, others decode and predict, the main thread writes. Memory does not
grow with the number of files or with their names.
"""

import shlex
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cnn.checkpoint import is_model_file
from cnn.inference.predictor import Predictor
from cnn.models import import_model, model_path
from jobs.classification.inputs import FILES_PER_PART, FolderInputs, Inputs, Part, find_inputs
from jobs.classification.table import ResumableTable, check_format
from jobs.classification.task import Row, Task, TaskSettings, cache_predictor, classify_task
from jobs.classification.worker import classify_on_worker, worker_device
from jobs.console.compiling import compiling
from jobs.console.device import choose_backend, results_device
from jobs.console.output import detail, emit, say
from jobs.console.progress import bar, plural
from jobs.errors import JobError
from jobs.options import ClassifyOptions
from jobs.training.run_folder import RunFolder
from logpose.common.cpus import available_cpus
from logpose.common.errors import printable
from logpose.common.locks import output_lock
from logpose.common.outputs import output_file
from pipeline.failure_jump import FailureJump
from pipeline.faults import check_reach
from pipeline.images.decode import fast_resize
from pipeline.parallel.ordered import in_order_on_cluster, in_order_on_threads
from pipeline.scan.class_folders import IMAGE_ENDINGS

ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
OTHER_TABLES = {
    ".xlsx", ".xls", ".ods", ".json", ".jsonl", ".html", ".feather", ".arrow", ".db", ".sqlite", ".safetensors",
}  # fmt: skip


_Rows: TypeAlias = Generator[list[Row], None, None]  # of each task


class ClassifyResult(NamedTuple):
    """Rows of the table at `path`: images classified, and files that cannot be read."""

    ok: int
    failed: int
    path: Path


def classify(images: Path, model: Path, out: Path, options: ClassifyOptions) -> ClassifyResult:
    """Write the labels of all images at `images` to the table `out`; finished parts of an interrupted run are reused.

    `model` is a model file, or the folder of a training.
    Raises JobError, ModelFileError, DatasetError, DeviceError where the options, the model or the images do not fit, or
    the workers of a cluster have different devices; DeviceFailedError and DeviceMemoryError where a GPU fails or has
    too little memory.
    """
    _check_names(images, out, options)
    check_format(out, options)  # before anything is written or loaded
    out = output_file(out)
    _check_out(out)
    model = model / "model.safetensors" if model.is_dir() else model
    read_from = _identity(model)
    if options.model:
        import_model(options.model)
    workers = options.workers or available_cpus()
    if options.scheduler:  # the workers compute, here the model is only checked: this machine needs no GPU
        backend = choose_backend("cpu", "auto", workers)
    else:
        backend = choose_backend(options.device, options.precision, workers)
    with compiling() as progress:
        predictor = Predictor(model, backend, options.views, progress)
    card = predictor.card
    classes = plural(len(card.class_names), "class", "classes")
    if options.topk > len(card.class_names):
        raise JobError(f"--topk {options.topk}: expected at most {len(card.class_names)}, as {model} has {classes}")
    # Workers import the class that is registered here, never one that only the file names.
    model_class = options.model or (model_path(card.model) if options.scheduler else "")
    settings = TaskSettings(model.absolute(), predictor.digest, replace(options, model=model_class or None))
    # Fewer and larger tasks on a cluster, where each one is sent over the network.
    inputs = find_inputs(images, out, card, FILES_PER_PART if options.scheduler else options.batch_size)
    say(printable(f"classifying {images} with {card.model}, {classes}"))
    if options.scheduler:
        say(f"cluster at {options.scheduler}")
        [device] = in_order_on_cluster(worker_device, [settings], options.scheduler)  # of any worker
        work = partial(classify_on_worker, settings, device)
        say(f"computing on {device}")
    else:
        cache_predictor(predictor, settings)
        if isinstance(inputs, FolderInputs):
            fast_resize()  # compiled, the first time, before the first image: its seconds count in no rate
        device = results_device(backend)
        work = partial(classify_task, settings)
        say(backend.description)
    identity = {"model": settings.model_hash, "--views": options.views, "device": device}
    detail(printable(f"classes: {', '.join(card.class_names)}"))
    with output_lock(out, f"classification into {out}"):
        table = ResumableTable(out, identity, options)
        if table.dropped:
            say(f"note: {plural(table.dropped, 'damaged part')} of the interrupted run, computed again")
        run = _Run(inputs, table, lambda: _identity(model) == read_from)
        try:
            _look_again(inputs, table)
            with inputs.open(table.scratch):
                if options.scheduler:
                    results = in_order_on_cluster(work, run.pending_tasks(), options.scheduler)
                    if isinstance(inputs, FolderInputs):
                        results = _within_reach(results, inputs.folder)
                else:
                    results = in_order_on_threads(work, run.pending_tasks(), workers)
                with closing(results):
                    run.write_parts(results)
        except BaseException:
            table.remove_if_empty()
            raise
        result = ClassifyResult(*table.finish(run.parts, merge=inputs.merge), out)
    if predictor.max_rows:
        say(f"note: batches of {predictor.max_rows} images, since larger ones do not fit in the GPU's memory")
    if run.model_changed:
        say(printable(f"note: {model} has changed meanwhile; the table is of the model as it was at the start"))
    unread = f", {plural(result.failed, 'file')} could not be read (status 'error')" if result.failed else ""
    before = ", already complete" if table.is_complete else ""
    say(printable(f"{plural(result.ok, 'image')} classified{unread}: {out}{before}"))
    if run.closed:
        say(f"note: {plural(run.closed, 'folder')} may not be entered: a row each, whose name ends in /")
    if run.jump.note:
        say(f"note: {run.jump.note}")
    if RunFolder(model.parent).last.exists():
        say(printable(f"next: {shlex.join(['logpose', 'report', str(model.parent)])}"))
    emit({"table": out, "ok": result.ok, "failed": result.failed, "model": model, "classes": len(card.class_names)})
    return result


def _check_names(images: Path, out: Path, options: ClassifyOptions) -> None:
    """Check the endings of both names. Raises JobError for an archive, and for a table that would not be one."""
    if images.suffix.lower() in ARCHIVES and images.is_file():
        raise JobError(f"expected a folder, an image or a dataset, found the archive {images}; unpack it first")
    ending = out.suffix.lower()
    if (ending in OTHER_TABLES or ending[1:] in IMAGE_ENDINGS) and options.format is None:
        raise JobError(
            f"expected a table that ends in .csv or .parquet, found {out.name}; give such a name, or --format csv"
        )


def _check_out(out: Path) -> None:
    """Raise JobError where the table would replace a file of another job, which --overwrite is not for."""
    folder = RunFolder(out.parent)
    if is_model_file(out):
        found = "a model file"
    elif (out.parent / "zarr.json").exists():
        found = "a dataset"
    elif out in folder.results and folder.is_training():
        found = "a file of a training"
    else:
        return
    raise JobError(f"expected a place for the table, found {found} at {out}; choose another name")


def _within_reach(results: _Rows, folder: str) -> _Rows:
    """Pass rows of a cluster on. Raises ReadError if a worker could not open a file that this process can."""
    with closing(results):
        for rows in results:
            for name, status, _, _, reason, *_ in rows:
                if status == "error" and reason.startswith("unreadable: "):
                    check_reach(f"{folder}/{name}", reason.removeprefix("unreadable: "))
            yield rows


def _look_again(inputs: Inputs, table: ResumableTable) -> None:
    """Raise JobError where files of a complete table that could not be read can be by now."""
    if found := [name for name in table.unreadable if inputs.can_be_read(name)]:
        files = f"{plural(len(found), 'file')} that could not be read then, and can be now"
        raise JobError(
            f"expected to find {table.path} complete, found that it lacks {files} (first {found[0]}); classify again"
            " with --overwrite, or give another name"
        )


def _identity(model: Path) -> tuple[int, ...] | None:
    """What tells a changed or replaced file from the one that was read."""
    try:
        found = model.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class _Run:
    """Creates the tasks of the unfinished parts, and writes each part from their rows.

    parts   parts of the inputs so far
    reused  rows in finished parts of earlier runs
    done    rows of this run
    closed  folders that may not be entered
    jump    the watch over the share of files that cannot be read
    model_changed  whether the model's file is another one by now
    """

    def __init__(self, inputs: Inputs, table: ResumableTable, is_same_model: Callable[[], bool]) -> None:
        self.inputs, self.table = inputs, table
        self._is_same_model, self.model_changed = is_same_model, False
        self.parts = self.reused = self.done = self.closed = 0
        self.jump = FailureJump()
        self.started: deque[tuple[int, Part]] = deque()  # parts that are not written yet, by number

    def pending_tasks(self) -> Iterator[Task]:
        """Yield the tasks of the unfinished parts, in order."""
        begun = False
        for number, part in enumerate(self.inputs.parts()):
            self.parts += 1
            if self.table.is_finished(number, part.digest):
                self.reused += part.rows
                continue
            if self.reused and not begun and not self.table.is_complete:
                say(f"resuming: {plural(self.reused, 'file')} already classified")
            begun = True
            self.started.append((number, part))
            yield from part.tasks

    def write_parts(self, results: Iterator[list[Row]]) -> None:
        """Write each part as soon as all its rows are there."""
        with bar("classifying", "files", 0) as progress:
            rows: list[Row] = []
            for task_rows in results:
                rows += task_rows
                self.done += len(task_rows)
                self.closed += sum(row[0].endswith("/") for row in task_rows)
                for row in task_rows:
                    self.jump.count(row[1] == "error")
                number, part = self.started[0]
                if len(rows) == part.rows:
                    self.inputs.check_unchanged()
                    self.model_changed |= not self._is_same_model()
                    self.table.write(number, part.digest, sorted(rows) if self.inputs.merge else rows)
                    self.started.popleft()
                    rows = []
                progress.update(self.done, total=self.inputs.found - self.reused)
