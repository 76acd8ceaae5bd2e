"""Parallel map with results in the order of the items: on threads here, or on a Dask cluster.

    items ──one at a time, as there is room──▶ tasks, in any order ──▶ early results ──in order──▶ consumer

Items are taken in the consumer's thread, and only as many ahead as keep all workers busy: a slow task holds up its
successors instead of filling the memory with their results.
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
Outcome: TypeAlias = tuple[int, R] | BaseException  # an item's number and its result, or what the task raised

POLL_SECONDS = 0.1  # between checks for room, while waiting for a result
AHEAD_PER_THREAD = 4  # tasks submitted and not yet yielded


def in_order_on_threads(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int | None = None
) -> Generator[R, None, None]:
    """Yield function(item) for each item, in order, computed by `workers` threads; it should release the GIL.

    At most `ahead` tasks are submitted and not yet yielded; None: 4 per worker. What a task or `items` raises is
    raised at once, not when its turn comes. Then, and when the generator is closed early, waiting tasks are cancelled
    and running ones finish first. Raises OptionError for less than one worker or task ahead.
    """
    limit = AHEAD_PER_THREAD * workers if ahead is None else ahead
    if workers < 1:
        raise OptionError(f"expected at least one worker, found {workers}")
    if limit < 1:
        raise OptionError(f"expected at least one task ahead, found {limit}")
    finished: queue.SimpleQueue[Outcome[R]] = queue.SimpleQueue()
    own: set[int] = set()  # ids of our threads

    def work(number: int, item: T) -> None:
        try:
            finished.put((number, function(item)))
        except BaseException as error:  # raised again in the consumer's thread
            finished.put(error)

    pool = ThreadPoolExecutor(workers, "logpose-task", initializer=lambda: own.add(threading.get_ident()))
    try:
        yield from _in_order(
            items, lambda number, item: pool.submit(work, number, item), lambda pending: pending < limit, finished
        )
    finally:
        # The garbage collector may close a dropped generator in any thread, even in one of the pool.
        pool.shutdown(wait=threading.get_ident() not in own, cancel_futures=True)


def in_order_on_cluster(function: Callable[[T], R], items: Iterable[T], address: str) -> Generator[R, None, None]:
    """Yield function(item) for each item, in order, computed by the workers of a Dask cluster.

    The function must be importable on the workers; items and results are pickled. At most two tasks per thread of the
    cluster run or wait at a time, and at most four are not yet yielded. Tasks of a lost worker are run again by
    another. Raises what `in_order_on_threads` raises; OptionError if there is no scheduler; BuildError if no worker is
    left, the connection is lost, or a task takes several workers down. After an error, and when the generator is
    closed early, waiting tasks are cancelled; running ones finish on their worker.
    """
    finished: queue.SimpleQueue[Outcome[R]] = queue.SimpleQueue()
    with closing(Cluster(address, finished)) as cluster:
        yield from _in_order(
            items,
            lambda number, item: cluster.submit(_on_worker, function, number, item),
            lambda pending: cluster.has_room() and pending < AHEAD_PER_THREAD * max(1, cluster.threads()),
            finished,
        )


def _in_order(
    items: Iterable[T],
    submit: Callable[[int, T], object],
    has_room: Callable[[int], bool],
    finished: queue.SimpleQueue[Outcome[R]],
) -> Generator[R, None, None]:
    """Submit items while has_room(number of tasks not yet yielded), and yield their results in order."""
    source = iter(items)
    more = True
    early: dict[int, R] = {}
    taken = turn = 0  # items submitted, results yielded
    while more or turn < taken:
        room = has_room(taken - turn) and more
        early.update(_collect(finished, wait=not room and turn not in early))
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


def _collect(finished: queue.SimpleQueue[Outcome[R]], wait: bool) -> dict[int, R]:
    """The finished results by number; with `wait`, up to POLL_SECONDS for the first. Raises what a task raised."""
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
    """A task of a cluster."""
    try:
        return number, function(item)
    except (SystemExit, KeyboardInterrupt) as error:  # if raised, either would end the worker
        return error
