"""Results in the order of the items, computed by threads; test_cluster.py tests the same on a cluster."""

from __future__ import annotations

import gc
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from pipeline.errors import OptionError
from pipeline.parallel.ordered import AHEAD_PER_THREAD, in_order_on_threads
from tests.pipeline.conftest import failing_after

TIMEOUT = 20  # seconds: a hang, not a slow machine


@pytest.fixture(autouse=True)
def no_hang_and_no_thread_is_left() -> Iterator[None]:
    with failing_after():
        yield
    gc.collect()
    wait_for(lambda: not own_threads(), "the end of the threads")


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("logpose-")]


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.005)


def square(number: int) -> int:
    return number * number


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("ahead", [None, 1, 3])
def test_results_come_in_the_order_of_the_items(workers: int, ahead: int | None) -> None:
    def later_is_quicker(number: int) -> int | None:
        time.sleep((7 - number % 8) * 0.002)
        return number if number % 3 else None  # None is a result like any other

    results = list(in_order_on_threads(later_is_quicker, iter(range(30)), workers, ahead))
    assert results == [number if number % 3 else None for number in range(30)]


def test_no_items_give_no_results() -> None:
    assert list(in_order_on_threads(square, [], 2)) == []


def test_tasks_run_in_parallel_in_own_threads() -> None:
    meeting = threading.Barrier(3)

    def meet(_: int) -> str:
        meeting.wait(timeout=TIMEOUT)
        return threading.current_thread().name

    names = list(in_order_on_threads(meet, range(3), 3))
    assert len(set(names)) == 3
    assert all(name.startswith("logpose-") for name in names)


@pytest.mark.parametrize(("ahead", "limit"), [(None, 2 * AHEAD_PER_THREAD), (5, 5)])
def test_slow_task_limits_the_number_of_items_taken(ahead: int | None, limit: int) -> None:
    taken: list[int] = []
    done: list[int] = []
    proceed = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert proceed.wait(timeout=TIMEOUT)
        done.append(number)
        return number

    def items() -> Iterator[int]:
        for number in range(40):
            assert threading.current_thread() is threading.main_thread()
            taken.append(number)
            yield number

    def release() -> None:
        wait_for(lambda: len(done) >= limit - 1, "the others")
        time.sleep(0.3)  # time to take too many
        proceed.set()

    results = in_order_on_threads(work, items(), 2, ahead)
    assert not taken, "expected no item to be taken before the first result is requested"
    helper = threading.Thread(target=release)
    helper.start()
    assert next(results) == 0
    helper.join()
    assert taken == list(range(limit))
    assert list(results) == list(range(1, 40))


def test_tasks_run_while_the_next_item_is_computed() -> None:
    done = [threading.Event() for _ in range(6)]

    def items() -> Iterator[int]:
        yield 0
        for number in range(1, 6):
            assert done[number - 1].wait(timeout=TIMEOUT), f"expected task {number - 1} to be done by now"
            yield number

    def work(number: int) -> int:
        done[number].set()
        return number

    assert list(in_order_on_threads(work, items(), 1)) == list(range(6))


class NotAnException(BaseException):
    """Not an Exception: `except Exception` does not catch it."""


@pytest.mark.parametrize("error", [OSError(28, "no space left"), SystemExit(3), NotAnException("odd"), queue.Empty()])
def test_exception_of_a_task_is_raised_at_once_and_cancels_the_others(error: BaseException) -> None:
    started: list[int] = []
    failed = threading.Event()

    def work(number: int) -> int:
        started.append(number)
        if number == 1:
            failed.set()
            raise error
        assert failed.wait(timeout=TIMEOUT)
        time.sleep(0.01)
        return number

    with pytest.raises(type(error)) as caught:
        # All of these would start if the error was raised in its turn, or if the other tasks were not cancelled.
        list(in_order_on_threads(work, range(500), 2, ahead=500))
    assert caught.value is error
    assert len(started) < 500
    assert not own_threads()


def test_exception_does_not_wait_for_its_turn() -> None:
    def work(number: int) -> int:
        if number == 0:
            time.sleep(0.5)  # the third task has long failed by then
        elif number == 3:
            raise ZeroDivisionError("task 3")
        return number

    with pytest.raises(ZeroDivisionError, match="task 3"):
        next(in_order_on_threads(work, count(), 2))


def test_no_item_is_taken_after_an_exception() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in count():
            taken.append(number)
            yield number
            time.sleep(0.001)

    with pytest.raises(ZeroDivisionError):
        next(in_order_on_threads(lambda number: 1 // number, items(), 1, ahead=1000))
    assert len(taken) < 1000


def test_exceptions_of_the_items_cancel_the_tasks() -> None:
    started: list[int] = []

    def items() -> Iterator[int]:
        yield from range(200)
        raise LookupError("no more of them")

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.01)
        return number

    with pytest.raises(LookupError, match="no more of them"):
        list(in_order_on_threads(work, items(), 2, ahead=500))
    assert len(started) < 200
    assert not own_threads()


@pytest.mark.parametrize("how", ["close", "del", "break", "throw"])
def test_leaving_early_cancels_waiting_tasks(how: str) -> None:
    started: list[int] = []
    ended: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.01)
        ended.append(number)
        return number

    results = in_order_on_threads(work, count(), 2, ahead=1000)
    if how == "break":
        for result in results:
            assert result == 0
            break
    else:
        assert next(results) == 0
    if how == "throw":
        with pytest.raises(ZeroDivisionError):
            results.throw(ZeroDivisionError())
    elif how == "close":
        results.close()
    else:
        del results
    assert not own_threads()
    assert len(started) < 1000
    assert sorted(started) == sorted(ended), "running tasks finish first"


def test_unused_generator_starts_no_thread() -> None:
    results = in_order_on_threads(square, count(), 2)
    assert not own_threads()
    del results


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_garbage_collection_in_one_of_its_own_threads() -> None:
    collected = threading.Event()
    dropped = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            assert dropped.wait(timeout=TIMEOUT)
            gc.collect()
            collected.set()
        return number

    gc.disable()
    try:
        cycle: list[object] = []
        results = in_order_on_threads(work, count(), 2)
        assert next(results) == 0
        cycle += [cycle, results]
        del cycle, results
        dropped.set()
        assert collected.wait(timeout=TIMEOUT)
    finally:
        gc.enable()


def test_ctrl_c_interrupts_the_waiting_consumer() -> None:
    started, proceed = threading.Event(), threading.Event()

    def work(number: int) -> int:
        started.set()
        assert proceed.wait(timeout=TIMEOUT)
        return number

    def interrupt(*_: object) -> None:  # runs in the main thread, and only if its wait can be interrupted
        proceed.set()
        raise KeyboardInterrupt

    def press() -> None:
        assert started.wait(timeout=TIMEOUT)
        time.sleep(0.2)  # for the consumer to be waiting
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupt)
    helper = threading.Thread(target=press)
    helper.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(in_order_on_threads(work, count(), 2))
    finally:
        helper.join()
        signal.signal(signal.SIGINT, before)
    assert not own_threads()


@pytest.mark.parametrize(
    ("workers", "ahead", "expected"), [(0, None, "one worker, found 0"), (2, 0, "one task ahead, found 0")]
)
def test_numbers_out_of_range_are_refused(workers: int, ahead: int | None, expected: str) -> None:
    with pytest.raises(OptionError, match=f"expected at least {expected}"):
        next(in_order_on_threads(square, [1], workers, ahead))
