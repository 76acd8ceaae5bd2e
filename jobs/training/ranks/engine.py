"""The engine of a training on ranks: gives them work, and collects what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path

from cnn.evaluation.metrics import EvaluatedBatch, Evaluation
from cnn.training.trainer import Trainer
from jobs.errors import RanksLostError, WorkFailedError
from jobs.training.engine import Progress, Snapshot, StepResult
from jobs.training.ranks import worker
from jobs.training.ranks.cluster import RESUME, Task, WorkerLostError
from jobs.training.ranks.generations import Generations
from jobs.training.ranks.messages import RankState, Share, Span, SpanReport
from jobs.training.ranks.record import RankRow, RankTimes
from jobs.training.timing import EpochClock
from pipeline.dataset.store import Split
from pipeline.loader.micro_batches import MicroBatches

NEWS_SECONDS = 0.25  # between requests for results: each takes a few milliseconds of a core that a rank may need
POLL_SECONDS = 0.01  # between looks whether tasks are done, which ask no worker


class RankEngine:
    """An `Engine` whose steps are computed by the ranks of a Dask cluster.

    trainer  never trains: it puts together evaluations
    val      the validation split
    """

    def __init__(
        self, generations: Generations, trainer: Trainer, division: MicroBatches, val: Split, clock: EpochClock
    ) -> None:
        self.recipe, self.clock = trainer.recipe, clock
        self.stop_requested: Callable[[], bool] = lambda: False
        generations.stop_requested = lambda: self.stop_requested()
        self._generations, self._trainer, self._division, self._val = generations, trainer, division, val
        self._tasks: dict[str, Task] = {}  # of the members, for the steps of an epoch
        self._state: RankState | None = None  # the last one that was fetched
        self._times: dict[tuple[int, str], RankTimes] = {}  # of the epoch, by rank and worker
        self._epoch = 0
        self._activity: list[RankRow] = []

    @property
    def step(self) -> int:
        return self._generations.step

    # Training

    def epoch(self, number: int, start: int) -> Iterator[list[StepResult]]:
        generations, first = self._generations, (number - 1) * self._division.steps
        last, generations.step = first + self._division.steps, first + start
        self._epoch = number
        self._times.clear()
        finished = False
        while not finished or generations.step < last:
            self._start()
            yield from self._follow()
            finished = self._collect()
            yield from self._rest(last if finished else 0)
        self._finish_epoch()

    def snapshot(self) -> Snapshot:
        generations, state = self._generations, self._state
        if state is None or self._tasks or state.step != generations.step:
            state = self._fetch_state()
            self._state = state
        return Snapshot(self._new(state.results), state.tensors, state.best)

    def take_activity(self) -> list[RankRow]:
        taken, self._activity = self._activity, []
        return taken

    def _start(self) -> None:
        """Have all ranks compute the rest of the epoch."""
        generations, first = self._generations, (self._epoch - 1) * self._division.steps
        held = generations.form()
        for rank, member in enumerate(generations.members):
            span = Span(generations.current, rank, self._epoch, held - first)
            self._tasks[member] = generations.submit("train", rank, worker.train_steps, span)

    def _follow(self) -> Iterator[list[StepResult]]:
        """Yield results until all tasks are done, or a rank stopped or was lost, or another one is ready to join."""
        generations = self._generations
        while self._tasks and not all(task.done() for task in self._tasks.values()):
            if generations.has_changed() or any(map(_has_stopped, self._tasks.values())):
                return
            try:
                results = generations.ask(generations.members[0], worker.news, generations.step)
            except WorkerLostError:
                return
            if new := self._new(results):
                yield new
            _pause(self._tasks.values())

    def _collect(self) -> bool:
        """End the tasks; return whether all ranks finished the epoch. Raises the error of a rank."""
        tasks, self._tasks = self._tasks, {}
        if not tasks:
            return False
        generation = self._generations.current
        if not all(task.done() and not _has_stopped(task) for task in tasks.values()):
            self._generations.end()
        reports = self._generations.outcomes(tasks)  # of the workers that are still there
        for member, report in reports.items():
            self._generations.held[member] = report.step
            rank = generation.members.index(member)
            self._times.setdefault((rank, member), RankTimes()).add(report.times)
        for report in reports.values():
            if report.error:
                self._generations.end()
                raise report.error
        finished = len(reports) == len(tasks) and all(report.finished for report in reports.values())
        if finished:
            self._compare(reports)
        else:
            self._generations.end()
        return finished

    def _rest(self, last: int) -> Iterator[list[StepResult]]:
        """The results of a finished epoch that were not fetched yet."""
        generations = self._generations
        while generations.step < last:
            holders = generations.holders()
            if not holders:
                raise generations.lost()
            try:
                results = generations.ask(holders[0], worker.news, generations.step)
            except WorkerLostError:
                generations.drop(holders[0])
                continue
            yield self._new(results)

    def _new(self, results: list[StepResult]) -> list[StepResult]:
        """Those that were not yielded yet: a step that was computed again has the same result."""
        new = []
        for result in results:
            if result.step == self._generations.step:
                self._generations.step += 1
                new.append(result)
        return new

    def _fetch_state(self) -> RankState:
        """The state of a rank, between two steps. Raises RanksLostError."""
        generations = self._generations
        while True:
            holders = list(generations.members) if self._tasks else generations.holders()
            if not holders:
                if not generations.begins_anew:
                    raise generations.lost()
                generations.form()
                continue
            try:
                state = generations.ask(holders[0], worker.state, generations.step)
            except WorkerLostError:
                if self._tasks:  # the other ranks stop at their step, and `epoch` continues with them
                    self._collect()
                generations.drop(holders[0])
                continue
            if state is not None and state.step >= generations.step:
                return state
            if not self._tasks:
                if state is not None:  # the rank that was ahead is lost: compute its steps again
                    self._start()
            elif generations.has_changed() or any(map(_has_stopped, self._tasks.values())):
                self._collect()

    def _compare(self, reports: dict[str, SpanReport]) -> None:
        """Raises WorkFailedError where the ranks do not all have the same state."""
        digests = {report.digest for report in reports.values()}
        if len(digests) > 1:
            found = ", ".join(f"{report.digest[:8]} on {member}" for member, report in reports.items())
            raise WorkFailedError(
                f"expected the same weights on all ranks after epoch {self._epoch}, found {found}: check the memory of"
                f" these machines, and that all have the same versions of logpose and NumPy; then {RESUME}"
            )

    def _finish_epoch(self) -> None:
        """Record what each rank did, and add the mean of their times to the clock."""
        rows = [
            RankRow(self._epoch, rank, member, *self._generations.place(member), times)
            for (rank, member), times in sorted(self._times.items(), key=lambda item: item[0])
        ]
        self._activity += rows
        count = len({row.rank for row in rows})  # the generation may have ended in the last step
        for phase in ("compute", "wait", "exchange", "read", "decode", "copy"):
            total = sum(getattr(row.times, f"{phase}_seconds") for row in rows)
            self.clock.times.add({phase: total / count})

    # Evaluation

    def validate(self, progress: Progress) -> Evaluation:
        return self._evaluate(None, "none", progress)

    def evaluate_saved(self, model: Path, views: str) -> Evaluation:
        while True:
            try:
                return self._evaluate(model.resolve(), views, lambda done: None)
            except RanksLostError:  # the checkpoint was just saved: others begin with it
                if self.stop_requested():
                    raise

    def _evaluate(self, model: Path | None, views: str, progress: Progress) -> Evaluation:
        generations = self._generations
        batches = -(-self._val.rows // self.recipe.batch_size)
        done: dict[int, list[EvaluatedBatch]] = {}  # by the number of the first batch
        todo = [(0, batches)]
        while todo:
            generations.form()
            count = len(generations.members)
            shares = []
            for begin, end in todo:
                ends = [begin + (rank + 1) * (end - begin) // count for rank in range(count)]
                shares += [Share(*each, model, views) for each in pairwise([begin, *ends]) if each[0] < each[1]]
            tasks = {
                share: generations.submit("validate", number % count, worker.evaluate_share, share)
                for number, share in enumerate(shares)
            }
            where = {share: generations.members[number % count] for number, share in enumerate(shares)}
            finished = sum(sum(len(batch.labels) for batch in part) for part in done.values())
            while not all(task.done() for task in tasks.values()) and not generations.has_lost(where.values()):
                progress(finished + sum(self._validated(member) for member in set(where.values())))
                _pause(tasks.values())
            for share, outcome in generations.results(tasks, where).items():
                done[share.first] = outcome
            todo = [(share.first, share.last) for share in shares if share.first not in done]
            if todo:
                generations.end()
        return self._trainer.evaluation(batch for first in sorted(done) for batch in done[first])

    def _validated(self, member: str) -> int:
        try:
            return int(self._generations.ask(member, worker.validated))
        except WorkerLostError:
            return 0


def _pause(tasks: Collection[Task]) -> None:
    """Wait NEWS_SECONDS, or until all tasks are done."""
    until = time.monotonic() + NEWS_SECONDS
    while time.monotonic() < until and not all(task.done() for task in tasks):
        time.sleep(POLL_SECONDS)


def _has_stopped(task: Task) -> bool:
    """Whether a task has ended without finishing its epoch."""
    try:
        return task.done() and (task.has_failed or not task.result().finished)
    except WorkerLostError:
        return True
