"""Generations of ranks: which workers train together, and how each comes to the state of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from cnn.checkpoint import load_checkpoint
from jobs.console.output import say
from jobs.console.progress import plural
from jobs.errors import JobError, RanksLostError
from jobs.training.ranks import worker
from jobs.training.ranks.cluster import RankCluster, Task, WorkerLostError
from jobs.training.ranks.messages import Generation, Preparation, Prepared, RankMissingError, RankSettings, divide
from logpose.common.errors import LogposeError, printable
from pipeline.faults import is_there

K = TypeVar("K")

POLL_SECONDS = 0.01  # between looks at tasks
SAY_AFTER = 3.0  # seconds of waiting for workers until that is said
FIRST_SECONDS = 30.0  # that a training waits for as many workers as it was asked for


class Generations:
    """Forms the ranks of a training, again whenever a worker is lost or joins.

    lanes     number of micro-batches of a batch
    most      number of ranks wanted; None: one for each worker
    step      number of steps whose results the engine has
    begins    what the first generation starts from: 'weights' that are initialised, or the 'checkpoint'
    held      the step of the state that each worker has

    `stop_requested` tells whether the user pressed Ctrl-C, so that no one waits for workers any longer.
    """

    def __init__(self, cluster: RankCluster, settings: RankSettings, lanes: int, most: int | None, begins: str) -> None:
        self.step = 0
        self.held: dict[str, int] = {}
        self.stop_requested: Callable[[], bool] = lambda: False
        self._cluster, self._settings, self._lanes = cluster, settings, lanes
        self._wanted = min(most or lanes, lanes)
        self._begins = begins
        self._number = 0
        self._current: Generation | None = None
        self._prepared: dict[str, Prepared] = {}
        self._left_out: dict[str, LogposeError] = {}
        self._holding: dict[str, Task] = {}  # keep the ranks alive: see `worker.hold_rank`
        self._joining: set[str] = set()  # workers that get ready
        self._expected = most or 1

    @property
    def current(self) -> Generation:
        assert self._current, "formed"
        return self._current

    @property
    def members(self) -> tuple[str, ...]:
        """The workers of the current generation, by rank."""
        return self._current.members if self._current else ()

    @property
    def first(self) -> Prepared:
        """What rank 0 said when it was ready."""
        return self._prepared[self.members[0]]

    def place(self, member: str) -> tuple[str, str]:
        """The host and the device of a worker."""
        return self._prepared[member].host, self._prepared[member].device

    # Forming

    def form(self) -> int:
        """Return the step that all members are at, after forming a generation if there is none.

        Raises RanksLostError where no worker has the state, and what a rank raises that cannot be replaced.
        """
        while self._current is None:
            workers = self._available()
            holders = [member for member in self.holders() if member in workers]
            if not holders and not self._begins:
                raise self.lost()
            others = sorted(set(workers) - set(holders))
            members = (holders + others)[: self._wanted]
            self._number += 1
            generation = Generation(self._number, tuple(members), divide(self._lanes, len(members)))
            self._prepare(generation, self.held[holders[0]] if holders else self.step)
        return self.held[self.members[0]]

    def _prepare(self, generation: Generation, step: int) -> None:
        """Have all members hold the state of `step`; make the generation the current one where all of them do."""
        begins = "" if self.holders() else self._begins
        share = bool(begins) or any(self.held.get(member) != step for member in generation.members)
        if not self._join(generation.members):
            return
        tasks = {}
        for rank, member in enumerate(generation.members):
            self._hold(member)
            preparation = Preparation(generation, rank, step, 0 if share else None, begins)
            key = f"logpose-prepare-{self._settings.training}-{generation.number}-{rank}"
            tasks[member] = self._cluster.submit(key, member, worker.prepare_rank, self._settings, preparation)
        self._wait(tasks, generation.number)
        failed, ready = False, dict[str, Prepared]()
        for member, task in tasks.items():
            outcome = self._outcome(task)
            if isinstance(outcome, Prepared):
                ready[member] = outcome
            else:
                failed = True
                if isinstance(outcome, WorkerLostError):
                    self.drop(member)
                if isinstance(outcome, LogposeError):
                    self._leave_out(member, outcome)
        expected = next(iter(ready.values())).device if ready else ""  # of rank 0, unless it failed
        for member, prepared in list(ready.items()):
            if prepared.device != expected:
                failed = True
                del ready[member]
                self._leave_out(member, _other_device(member, prepared.device, expected))
        self.held |= dict.fromkeys(ready, step)
        if failed:
            self._cluster.tell(list(generation.members), worker.end_generation, self._settings.training, self._number)
            return
        for line in ready[generation.members[0]].lines:
            say(printable(line))
        self._prepared |= ready
        self.held = dict.fromkeys(generation.members, step)
        self._begins, self._current = "", generation
        self._joining.difference_update(generation.members)
        if generation.number > 1:
            say(f"{plural(generation.size, 'rank')} from step {step + 1} on")

    def _join(self, members: tuple[str, ...]) -> bool:
        """Have workers answer the ranks; return whether all do. Raises the error of the only worker."""
        errors = self._cluster.without_package(list(members), worker.__name__)
        for member, error in errors.items():
            if isinstance(error, LogposeError):
                self._leave_out(member, error)
            else:
                self.drop(member)
        self._cluster.tell([member for member in members if member not in errors], worker.join, self._settings.training)
        return not errors

    def _available(self) -> dict[str, int]:
        """The workers that may be ranks, at least one: waits for the first, and at the start for those expected."""
        began, said = time.monotonic(), False
        while True:
            workers = self._usable(fresh=True)
            waited = time.monotonic() - began
            if len(workers) >= min(self._expected, self._wanted) or (workers and waited > FIRST_SECONDS):
                self._expected = 1
                self._holding = {member: task for member, task in self._holding.items() if member in workers}
                self._joining &= workers.keys()
                return workers
            if self._left_out and not workers and set(self._left_out) >= set(self._cluster.workers()):
                raise next(iter(self._left_out.values()))
            if self.stop_requested():
                raise self.lost()
            if waited > SAY_AFTER and not said:
                said = True
                say(f"waiting for workers of {self._cluster.name}")
            time.sleep(POLL_SECONDS)

    def _usable(self, fresh: bool = False) -> dict[str, int]:
        workers = self._cluster.workers(fresh)
        return {address: threads for address, threads in workers.items() if address not in self._left_out}

    def _leave_out(self, member: str, error: LogposeError) -> None:
        """Go on without a worker. Raises the error where no other worker has the state, or could begin."""
        self.held.pop(member, None)
        self._left_out[member] = error
        if not self._usable(fresh=True):
            raise error
        say(printable(f"note: the worker {member} is left out: {error}"))

    # Changes

    def has_lost(self, members: Iterable[str]) -> bool:
        """Whether one of these workers is gone."""
        workers = self._cluster.workers()
        return any(member not in workers for member in members)

    def has_changed(self) -> bool:
        """Whether a member is gone, or a worker is ready to join. Has those that could join get ready."""
        if self.has_lost(self.members):
            return True
        for address in sorted(set(self._usable()) - set(self.members) - self._joining):
            if len(self.members) + len(self._joining) < self._wanted and self._join((address,)):
                self._hold(address)
                self._joining.add(address)
        ready = False
        for address in list(self._joining):
            task = self._holding[address]
            if address not in self._usable():
                self._joining.remove(address)
            elif task.done():
                self._joining.remove(address)
                outcome = self._outcome(task)
                if isinstance(outcome, LogposeError):
                    self._leave_out(address, outcome)
                else:
                    ready = ready or outcome is None
        return ready

    def _hold(self, member: str) -> None:
        """Have a worker make its rank, and keep it."""
        if member not in self._holding:
            key = f"logpose-hold-{self._settings.training}-{member}-{time.monotonic_ns()}"
            self._holding[member] = self._cluster.submit(key, member, worker.hold_rank, self._settings)

    def end(self) -> None:
        """End the current generation: its ranks stop at the step that they are at."""
        if self._current:
            self._cluster.tell(
                list(self._current.members), worker.end_generation, self._settings.training, self._current.number
            )
            self._current = None

    def holders(self) -> list[str]:
        """The workers that have the newest state, by address."""
        workers = self._cluster.workers()
        held = {member: step for member, step in self.held.items() if member in workers}
        return sorted(member for member, step in held.items() if step == max(held.values()))

    def drop(self, member: str) -> None:
        """Go on without the state of a worker that does not answer."""
        self.held.pop(member, None)
        if member in self.members:
            self.end()

    @property
    def begins_anew(self) -> bool:
        """Whether no worker has the state, and the next generation begins with the checkpoint or new weights."""
        return bool(self._begins)

    def lost(self) -> RanksLostError:
        """Begin with the checkpoint next time, if there is one; return the error to raise."""
        self.end()
        self.held.clear()
        last = self._settings.last
        self._begins = "checkpoint" if is_there(last) else "weights"
        self.step = int(load_checkpoint(last).progress["step"]) if is_there(last) else 0
        return RanksLostError("all ranks of the training were lost; run the same command again with --resume")

    # Tasks and requests

    def submit(self, what: str, rank: int, function: Callable[..., Any], *arguments: Any) -> Task:
        """Start a task on the worker of a rank."""
        training = self._settings.training
        key = f"logpose-{what}-{training}-{self._number}-{rank}-{time.monotonic_ns()}"
        return self._cluster.submit(key, self.members[rank], function, training, *arguments)

    def ask(self, member: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Ask a worker. Raises WorkerLostError."""
        if member not in self._cluster.workers():
            raise WorkerLostError(member)
        return self._cluster.ask(member, function, self._settings.training, *arguments)

    def outcomes(self, tasks: dict[str, Task]) -> dict[str, Any]:
        """Wait for the members' tasks; return their results, without those of workers that are gone."""
        return self.results(tasks, {member: member for member in tasks})

    def results(self, tasks: dict[K, Task], where: dict[K, str]) -> dict[K, Any]:
        """Wait for tasks, each on a worker; return their results, without those of workers that are gone.

        Raises the LogposeError of a task.
        """
        self._wait_where(tasks, where)
        found = {}
        for key, task in tasks.items():
            outcome = self._outcome(task)
            if isinstance(outcome, LogposeError):
                raise outcome
            if isinstance(outcome, WorkerLostError):
                self.held.pop(where[key], None)
            else:
                found[key] = outcome
        return found

    def close(self) -> None:
        """Have all workers forget the training, also those that were left out."""
        self._cluster.cancel(list(self._holding.values()))
        self._cluster.tell(list(self._cluster.workers(fresh=True)), worker.leave, self._settings.training)

    def _wait(self, tasks: dict[str, Task], number: int) -> None:
        """Wait for preparations; where a worker is lost or fails, tell the others not to wait for it."""
        told = False
        while not all(task.done() for member, task in tasks.items() if member in self._cluster.workers()):
            lost = any(member not in self._cluster.workers() for member in tasks)
            failed = any(task.has_failed for task in tasks.values())
            if (lost or failed) and not told:
                told = True
                self._cluster.tell(list(tasks), worker.end_generation, self._settings.training, number)
            time.sleep(POLL_SECONDS)

    def _wait_where(self, tasks: dict[K, Task], where: dict[K, str]) -> None:
        while not all(task.done() for key, task in tasks.items() if where[key] in self._cluster.workers()):
            time.sleep(POLL_SECONDS)

    def _outcome(self, task: Task) -> Any:
        """The result of a task, its LogposeError, or a WorkerLostError."""
        if not task.done():
            self._cluster.cancel([task])
            return WorkerLostError()
        try:
            return task.result()
        except (LogposeError, WorkerLostError) as error:
            return error
        except RankMissingError as error:
            return WorkerLostError(str(error))
        except Exception as error:  # Dask has many kinds for a worker that is gone
            if type(error).__module__.split(".")[0] in ("distributed", "asyncio", "concurrent", "tornado"):
                return WorkerLostError(str(error))
            raise


def _other_device(member: str, found: str, expected: str) -> JobError:
    return JobError(
        f"expected the same device on all ranks, {expected}, found {found} on {member}: the weights would"
        " depend on who computed what; use workers of one kind, or --device cpu"
    )
