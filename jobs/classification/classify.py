"""A tree of images, or a dataset -> a table with one row for each.

    list ──parts──▶ decode and compute ──rows, in order──▶ finished parts ──▶ OUT.csv

All at the same time: a thread lists, others decode and compute, this one writes. Memory does not grow with the number
of files, nor with their names.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

from cnn.backends import pick_backend
from cnn.inference.predictor import Predictor
from jobs.classification.inputs import FILES_PER_PART, Source, Work, find_inputs
from jobs.classification.table import PartedTable, TableOptions
from jobs.classification.task import Block, ClassificationTask, hash_file, keep, label
from jobs.console.progress import bar, plural
from jobs.errors import JobError
from logpose.common.cpus import available_cpus
from pipeline.build.destination import exclusive_lock
from pipeline.parallel.ordered import in_order_on_cluster, in_order_on_threads


def classify(
    images: Path,
    model: Path,
    out: Path,
    *,
    topk: int = 1,
    threshold: float | None = None,
    table_format: Literal["csv", "parquet"] | None = None,
    spreadsheet_safe: bool = False,
    views: str = "none",
    batch_size: int = 32,
    device: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write the label of every image at `images` to `out`; a finished part of an earlier run is kept."""
    model = model / "model.safetensors" if model.is_dir() else model
    workers = workers or available_cpus()
    backend = pick_backend(device, workers)
    predictor = Predictor(model, backend, views)
    card = predictor.card
    known = plural(len(card.class_names), "class", "classes")
    if topk > len(card.class_names):
        raise JobError(f"--topk {topk} asks for more labels than there are: {model} knows {known}; give less")
    options = TableOptions(topk, threshold, spreadsheet_safe, table_format or _format_of(out))
    task = ClassificationTask(model.absolute(), hash_file(model), device, views, batch_size, options)
    keep(predictor, task)
    # On a cluster a task travels: fewer, larger ones.
    source = find_inputs(images, out, card, FILES_PER_PART if scheduler else batch_size)
    identity = {"model": task.model_hash, "--views": views, "device": device if scheduler else backend.name}
    print(f"{images}: to be classified by {card.model}, which knows {known}")
    print(f"on the cluster at {scheduler}" if scheduler else backend.description)
    out.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out.with_name(f".{out.name}.lock"), f"classification into {out}"):
        table = PartedTable(out, identity, options, overwrite=overwrite)
        run = _Run(source, table)
        do = partial(label, task)
        try:
            with source.opened(table.scratch):
                if scheduler:
                    results = in_order_on_cluster(do, run.blocks(), scheduler)
                else:
                    results = in_order_on_threads(do, run.blocks(), workers)
                with closing(results):
                    run.collect(results)
        except BaseException:
            table.abandon()
            raise
        ok, bad = table.finish(run.parts, merge=source.merge)
    unread = f", {plural(bad, 'file')} could not be read (status 'error' in the table)" if bad else ""
    print(f"{plural(ok, 'image')} classified{unread}: {out}")
    return 0


class _Run:
    """Hands out the blocks of unfinished parts, and finishes the parts with the rows that come back."""

    def __init__(self, source: Source, table: PartedTable) -> None:
        self.source, self.table = source, table
        self.parts = 0
        self.kept = self.done = 0  # rows finished before, and now
        self.waiting: deque[tuple[int, Work]] = deque()  # parts handed out, in whole or so far

    def blocks(self) -> Iterator[Block]:
        """The blocks that are to be done, in order."""
        begun = False
        for number, work in enumerate(self.source.parts()):
            self.parts += 1
            if self.table.finished(number, work.digest):
                self.kept += work.rows
                continue
            if self.kept and not begun:
                print(f"going on: {self.kept:,} of them were classified before", flush=True)
            begun = True
            self.waiting.append((number, work))
            yield from work.blocks

    def collect(self, results: Iterator[list[list[str]]]) -> None:
        """Write each part when its last rows have come."""
        with bar("classifying", "files", 0) as progress:
            rows: list[list[str]] = []
            for some in results:
                rows += some
                self.done += len(some)
                number, work = self.waiting[0]
                if len(rows) == work.rows:
                    self.table.write(number, work.digest, sorted(rows) if self.source.merge else rows)
                    self.waiting.popleft()
                    rows = []
                progress.update(self.done, total=self.source.found - self.kept)


def _format_of(out: Path) -> Literal["csv", "parquet"]:
    return "parquet" if out.suffix.lower() in (".parquet", ".pq") else "csv"
