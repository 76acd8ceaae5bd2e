"""Progress of a job: a bar on a terminal, a line now and then in a pipe or a log file."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from jobs.console.output import Verbosity, say, verbosity

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_EVERY = 10.0  # seconds between two lines in a pipe
MIN_BAR = 10  # terminal columns; with less room, the text at the right end is left out


class Bar(Protocol):
    """Where a job reports its progress."""

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Show that `done` of `total` units are finished, and a note."""


@contextmanager
def bar(what: str, unit: str, total: int, *, done: int = 0, ends: bool = True) -> Iterator[Bar]:
    """Show progress while the block runs. A resumed job starts with `done` units.

    A pipe also receives the first and the last state, unless `ends` is false.
    """
    if is_terminal() and verbosity() >= Verbosity.NORMAL:
        with _RichBar(what, unit, total, done) as shown:
            yield shown
    else:
        lines = _Lines(what, unit, total, done, ends)
        yield lines
        lines.finish()


def is_terminal() -> bool:
    """Return whether standard output is a terminal that can redraw a line."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def plural(count: int, one: str, many: str = "") -> str:
    """Format a count: `1 image`, `2 images`, `12,000 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Format a duration: 4.2 s, 42 s, 3:07, 1:02:03."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Lines:
    """Lines without control characters, for a pipe, a log file or a dumb terminal."""

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
        words = [f"{self.what}: {self.done:,} of {self.total:,} {self.unit}"]
        done_now, elapsed = self.done - self.started_with, now - self.started
        if done_now > 0 and elapsed > 0:
            rate = done_now / elapsed
            words.append(f"{_rate(rate)}/s")
            if self.done < self.total:
                words.append(f"{duration((self.total - self.done) / rate)} left")
            else:
                words.append(f"took {duration(elapsed)}")
        if self.note:
            words.append(self.note)
        say(", ".join(words))
        self.printed, self.printed_done = now, self.done


class _RichBar:
    """A bar with count, rate, remaining time and note, as many of them as fit. It disappears when done."""

    progress: "Progress"
    task: "TaskID"

    def __init__(self, what: str, unit: str, total: int, done: int, console: "Console | None" = None) -> None:
        from rich import get_console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task
        from rich.table import Column, Table
        from rich.text import Text

        screen = console or get_console()

        class Label(ProgressColumn):
            def __init__(self, text: Callable[[Task], str]) -> None:
                super().__init__(Column(no_wrap=True, overflow="ellipsis"))
                self.text = text

            def render(self, task: Task) -> Text:
                return Text(self.text(task))

        def count(task: Task) -> str:
            total = f"/{task.total:,.0f}" if task.total else ""  # unknown at first
            return f"{task.completed:,.0f}{total} {unit}"

        labels = (
            Label(lambda task: what),
            Label(count),
            Label(lambda task: f"{duration(task.time_remaining)} left" if task.time_remaining else ""),
            Label(lambda task: f"{_rate(task.speed)}/s" if task.speed else ""),
            Label(lambda task: str(task.fields["note"])),
        )
        reserve = Label(lambda task: "  ")  # for the ^C that a terminal shows: rich cannot erase a line that wraps

        class FittingProgress(Progress):
            def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
                tasks = list(tasks)
                widths = [max((len(label.text(task)) for task in tasks), default=0) for label in labels]
                room = screen.width - MIN_BAR - 4  # the bar and the reserve, with a space behind each
                fitting = sum(sum(widths[: n + 1]) + n + 1 <= room for n in range(len(labels)))
                first, *others = labels[: max(fitting, 2)]
                self.columns = (first, BarColumn(bar_width=None), *others, reserve)
                return super().make_tasks_table(tasks)

        self.progress = FittingProgress(transient=True, refresh_per_second=5, console=screen)
        self.task = self.progress.add_task(what, total=total or None, completed=done, note="")

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
