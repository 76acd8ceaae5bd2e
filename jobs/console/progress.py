"""How far a job is: a bar on a terminal, a plain line now and then in a pipe or a log file."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY = 10.0  # seconds between two lines in a pipe


class Bar(Protocol):
    """What a job tells about its progress."""

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """`done` of `total` units are finished; `note` is shown behind them."""


@contextmanager
def bar(what: str, unit: str, total: int, *, done: int = 0, ends: bool = True) -> Iterator[Bar]:
    """Show progress while the block runs. A job that goes on starts with `done` units.

    In a pipe the first and the last state are printed too, unless `ends` is false.
    """
    if is_terminal():
        with _RichBar(what, unit, total, done) as shown:
            yield shown
    else:
        lines = _Lines(what, unit, total, done, ends)
        yield lines
        lines.finish()


def is_terminal() -> bool:
    """Whether somebody watches who can see a bar move."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def plural(count: int, one: str, many: str = "") -> str:
    """`1 image`, `2 images`, `12,000 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 4.2 s, 3:07, 1:02:03."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Lines:
    """Lines without any control character: what a pipe, a log file or a dumb terminal gets."""

    def __init__(self, what: str, unit: str, total: int, done: int, ends: bool) -> None:
        self.what, self.unit, self.total, self.ends = what, unit, total, ends
        self.started_with = self.done = done
        self.started = self.printed = time.monotonic()
        self.note, self.printed_done = "", -1

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        self.done, self.note = done, note
        self.total = self.total if total is None else total
        first = self.ends and self.printed_done < 0
        if first or time.monotonic() - self.printed >= LINE_EVERY:
            self._print()

    def finish(self) -> None:
        if self.ends and self.total and self.done != self.printed_done:
            self._print()

    def _print(self) -> None:
        now = time.monotonic()
        parts = [f"{self.what}: {self.done:,} of {self.total:,} {self.unit}"]
        fresh, elapsed = self.done - self.started_with, now - self.started
        if fresh > 0 and elapsed > 0:
            rate = fresh / elapsed
            parts.append(f"{_rate(rate)}/s")
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
            else:
                parts.append(f"took {duration(elapsed)}")
        if self.note:
            parts.append(self.note)
        print(", ".join(parts), flush=True)
        self.printed, self.printed_done = now, self.done


class _RichBar:
    """A bar with rate and remaining time; it disappears when done, so that the job's own lines stay."""

    progress: "Progress"
    task: "TaskID"

    def __init__(self, what: str, unit: str, total: int, done: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
        )
        from rich.text import Text

        class PaceColumn(ProgressColumn):
            def render(self, task: Task) -> Text:
                if not task.speed:
                    return Text()
                left = f", {duration(task.time_remaining)} left" if task.time_remaining else ""
                return Text(f"{_rate(task.speed)}/s{left}", style="progress.data.speed")

        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(unit, markup=False),
            PaceColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TextColumn("  "),  # room for the ^C that a terminal shows: a line that wraps is not erased
            transient=True,
            refresh_per_second=5,
        )
        self.task = self.progress.add_task(what, total=total, completed=done, note="")

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        self.progress.update(self.task, completed=done, note=note, total=total)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}" if per_second < 10 else f"{per_second:,.0f}"
