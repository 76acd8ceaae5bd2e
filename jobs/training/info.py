"""Describe a training on the console: how far it is, how good, where its time went, and what each rank did."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from cnn.errors import ModelFileError
from jobs.console.output import emit, say
from jobs.console.progress import duration, plural
from jobs.console.table import line, table
from jobs.recipes.config import describe
from jobs.report.load_run import TrainedRun, load_run
from jobs.training.ranks.record import RankRow, RankTimes, read_ranks
from jobs.training.timing import phase_seconds
from logpose.common.records import RecordError, parse_record


def info_run(run_dir: Path) -> None:
    """Describe the training in `run_dir`. Raises JobError where there is none, ModelFileError where it is damaged."""
    run = load_run(run_dir)
    rows = [rank_row(values) for values in run.state.ranks] or read_ranks(run.folder.ranks)
    blocks = [_training(run), _times(run)]
    if rows:
        blocks.append(_ranks(rows))
    say("\n\n".join("\n".join(lines) for lines in blocks))
    emit(
        {
            "run_dir": run_dir,
            "dataset": run.state.dataset,
            "device": run.state.device,
            "finished": run.finished,
            "epochs": len(run.history),
            "best": asdict(run.best),
            "seconds": phase_seconds(run.history),
            "ranks": [row.to_dict() for row in rows],
        }
    )


def _training(run: TrainedRun) -> list[str]:
    card, done, best = run.model.card, len(run.history), run.best
    state = "finished" if run.finished else "not finished"
    accuracy = "" if best.val_accuracy is None else f": accuracy {best.val_accuracy:.2%}"
    return [
        line("training", str(run.folder.path)),
        line("dataset", run.state.dataset or "unknown"),
        line("device", run.state.device or "unknown"),
        line("model", f"{card.model}, {plural(len(card.class_names), 'class', 'classes')}"),
        line("recipe", describe(run.recipe)),
        line("epochs", f"{done:,} of {run.recipe.epochs:,}, {state}"),
        line("best", f"epoch {best.epoch}{accuracy}"),
    ]


def _times(run: TrainedRun) -> list[str]:
    total = run.seconds or 1.0
    phases = {name: seconds for name, seconds in phase_seconds(run.history).items() if seconds > 0}
    rows = [(name, duration(seconds), f"{seconds / total:.1%}") for name, seconds in phases.items()]
    return table([("time", "", ""), *rows, ("together", duration(run.seconds), "")])


def rank_row(values: dict[str, Any]) -> RankRow:
    """A row of ranks.csv, from the state in last.safetensors, which has a checksum. Raises ModelFileError."""
    try:
        place = parse_record(RankRow, {name: values[name] for name in RankRow._fields[:-1]} | {"times": RankTimes()})
        columns = {each.name for each in fields(RankTimes)} & values.keys()
        times = parse_record(RankTimes, {name: values[name] for name in columns})
    except (KeyError, RecordError) as error:
        raise ModelFileError(f"expected what a rank did, found something else ({error}); train again") from error
    return place._replace(times=times)


def _ranks(rows: Sequence[RankRow]) -> list[str]:
    """What each rank of each worker did, over all epochs."""
    header = ("rank", "worker", "host", "epochs", "images", "micro-batches", "compute", "wait", "exchange", "sent")
    lines: list[tuple[str, ...]] = [header]
    for (rank, worker, host), group in groupby(sorted(rows, key=_place), _place):
        times, epochs = RankTimes(), set[int]()
        for row in group:
            times.add(row.times)
            epochs.add(row.epoch)
        total = times.seconds or 1.0
        parts = (times.compute_seconds, times.wait_seconds, times.exchange_seconds)
        lines.append(
            (
                str(rank), worker, host, f"{len(epochs):,}", f"{times.images:,}", f"{times.micro_batches:,}",
                *(f"{seconds / total:.1%}" for seconds in parts), f"{times.sent_megabytes:,.0f} MB",
            )
        )  # fmt: skip
    return table(lines)


def _place(row: RankRow) -> tuple[int, str, str]:
    return row.rank, row.worker, row.host
