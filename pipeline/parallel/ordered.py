"""A function over many items, its results in the order of the items: on threads here, or on a cluster.

    items ──one at a time, as there is room──▶ tasks, in any order ──▶ early results ──in order──▶ consumer

Items are taken in the consumer's thread, and only so many ahead of it that everybody is kept busy: one task
that is slow holds up its successors instead of filling the memory with their results.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeAlias, TypeVar

from pipeline.errors import OptionError
from pipeline.parallel.cluster import Cluster

T = TypeVar("T")
R = TypeVar("R")
Outcome: TypeAlias = tuple[int, R] | BaseException  # an item's number and its result, or what a task raised

POLL_SECONDS = 0.1  # how often a waiting consumer looks whether there is room for another task
AHEAD_PER_THREAD = 4  # tasks handed out or finished, whose turn has not come


def in_order_on_threads(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int | None = None
) -> Generator[R, None, None]:
    """function(item) of each item, in order, computed by `workers` threads; it should let go of the GIL.

    At most `ahead` tasks are handed out and not yet yielded; None: 4 for each worker. Whatever a task or
    `items` raises is raised here, at once and not when its turn comes. Then, and when the generator is left
    early, tasks that have not begun are cancelled and those under way are waited for. Raises OptionError for
    less than one worker, or none ahead.
    """
    most = AHEAD_PER_THREAD * workers if ahead is None else ahead
    if workers < 1:
        raise OptionError(f"expected at least one worker, found {workers}")
    if most < 1:
        raise OptionError(f"expected at least one task ahead, found {most}")
    finished: queue.SimpleQueue[Outcome[R]] = queue.SimpleQueue()
    own: set[int] = set()  # our threads

    def work(number: int, item: T) -> None:
        try:
            finished.put((number, function(item)))
        except BaseException as error:  # into the consumer's thread, whatever it is
            finished.put(error)

    pool = ThreadPoolExecutor(workers, "logpose-task", initializer=lambda: own.add(threading.get_ident()))
    try:
        yield from _in_order(
            items, lambda number, item: pool.submit(work, number, item), lambda held: held < most, finished
        )
    finally:
        # The garbage collector may close a dropped generator in any thread, even in one of ours.
        pool.shutdown(wait=threading.get_ident() not in own, cancel_futures=True)


def in_order_on_cluster(function: Callable[[T], R], items: Iterable[T], address: str) -> Generator[R, None, None]:
    """function(item) of each item, in order, computed by the workers of a Dask cluster.

    The function must be importable on the workers; items and results travel. Two tasks for each of the
    cluster's threads are handed out at a time, and at most four are not yet yielded. A worker that vanishes
    has its tasks done by another. Raises what `in_order_on_threads` raises; OptionError where there is no
    scheduler; BuildError where no worker is left, the connection is lost, or a task takes several workers
    down. After an error, and when the generator is left early, tasks that have not begun are cancelled;
    nobody waits for those under way.
    """
    finished: queue.SimpleQueue[Outcome[R]] = queue.SimpleQueue()
    with closing(Cluster(address, finished)) as cluster:
        yield from _in_order(
            items,
            lambda number, item: cluster.submit(_on_worker, function, number, item),
            lambda held: cluster.has_room() and held < AHEAD_PER_THREAD * cluster.threads(),
            finished,
        )


def _in_order(
    items: Iterable[T],
    submit: Callable[[int, T], object],
    has_room: Callable[[int], bool],
    finished: queue.SimpleQueue[Outcome[R]],
) -> Generator[R, None, None]:
    """Take items and submit them while has_room(tasks not yet yielded); yield what comes of them, in order."""
    source = iter(items)
    more = True
    early: dict[int, R] = {}
    taken = turn = 0  # items handed out, results yielded
    while more or turn < taken:
        room = has_room(taken - turn) and more
        early.update(_arrived(finished, wait=not room and turn not in early))
        if room:
            try:
                item = next(source)
            except StopIteration:
                more = False
            else:
                submit(taken, item)
                taken += 1
        elif turn in early:
            yield early.pop(turn)
            turn += 1


def _arrived(finished: queue.SimpleQueue[Outcome[R]], wait: bool) -> dict[int, R]:
    """The results that are there, by number, after a moment's wait for one if so wished. Raises what a task raised."""
    results: dict[int, R] = {}
    while True:
        try:
            outcome = finished.get(block=wait, timeout=POLL_SECONDS)
        except queue.Empty:
            return results
        if isinstance(outcome, BaseException):
            raise outcome
        number, result = outcome
        results[number] = result
        wait = False


def _on_worker(function: Callable[[T], R], number: int, item: T) -> Outcome[R]:
    """One task of a cluster."""
    try:
        return number, function(item)
    except (SystemExit, KeyboardInterrupt) as error:  # raised, either would take the worker down
        return error
