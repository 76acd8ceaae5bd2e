"""What ranks offer to and fetch from each other, without Dask: nothing stale, and no one waits in vain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from jobs.training.ranks import mailbox as mailbox_module
from jobs.training.ranks.mailbox import HANDLER, GenerationOverError, Mailbox, mailbox, remove_mailbox
from jobs.training.ranks.messages import divide
from tests.jobs.training.ranks.fakes import FakeWorker, Network, generation, network, open_mailbox


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as started:
        yield started


@pytest.fixture
def among(threads: ThreadPoolExecutor) -> Iterator[Network]:
    """Ends before the threads, which wait for it."""
    with network() as started:
        yield started


@pytest.fixture
def pair(among: Network) -> tuple[Mailbox, Mailbox]:
    """The mailboxes of ranks 0 and 1 of generation 1."""
    boxes = open_mailbox(among, "a"), open_mailbox(among, "b")
    for box in boxes:
        box.begin(generation(1, "a", "b"))
    return boxes


def end(among: Network, box: Mailbox, number: int) -> None:
    among.call(lambda: box.end(number))


def start_fetch(among: Network, threads: ThreadPoolExecutor, box: Mailbox, *arguments: Any) -> Future[list[Any]]:
    """Fetch in a thread, and wait until the request waits for an answer."""
    waiting = threading.Event()
    fetch_all = box._fetch_all

    def recording(*arguments: Any) -> Any:
        waiting.set()
        return fetch_all(*arguments)

    box._fetch_all = recording  # type: ignore[method-assign]
    future = threads.submit(box.fetch, *arguments)
    assert waiting.wait(60)
    among.turn()
    assert not future.done()
    return future


def assert_over(future: Future[Any]) -> None:
    assert isinstance(future.exception(20), GenerationOverError)


# Offers -------------------------------------------------------------------------------------------------


def test_each_rank_gets_what_is_offered_to_it_in_the_order_of_the_ranks(among: Network) -> None:
    boxes = [open_mailbox(among, name) for name in "abc"]
    for rank, box in enumerate(boxes):
        box.begin(generation(1, "a", "b", "c"))
        box.offer("key", [np.full(3, 10 * rank + to) for to in range(3)])  # (3,) each
    found = boxes[1].fetch("key", 1, [2, 0])
    np.testing.assert_array_equal(found, [[21] * 3, [1] * 3])
    assert [box.sent_bytes for box in boxes] == [24, 0, 24]


def test_fetch_waits_for_the_offer(among: Network, threads: ThreadPoolExecutor, pair: tuple[Mailbox, Mailbox]) -> None:
    future = start_fetch(among, threads, pair[0], "sums 3", 0, [1])
    pair[1].offer("sums 2", ["of the step before", "-"])
    pair[1].offer("sums 3", ["of this step", "-"])
    assert future.result(20) == ["of this step"]


def test_replaced_and_withdrawn_offers_are_not_served(
    among: Network, threads: ThreadPoolExecutor, pair: tuple[Mailbox, Mailbox]
) -> None:
    pair[1].offer("sums 1", ["one", "-"])
    pair[1].offer("sums 2", ["two", "-"], replaces="sums 1")
    assert pair[0].fetch("sums 2", 0, [1]) == ["two"]
    first = start_fetch(among, threads, pair[0], "sums 1", 0, [1])
    pair[1].withdraw("sums 2")
    second = start_fetch(among, threads, pair[0], "sums 2", 0, [1])
    end(among, pair[1], 1)
    assert_over(first)
    assert_over(second)


# Generations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [0, 1])
def test_waiting_fetch_is_over_where_either_rank_hears_of_the_end(
    among: Network, threads: ThreadPoolExecutor, pair: tuple[Mailbox, Mailbox], ended: int
) -> None:
    future = start_fetch(among, threads, pair[0], "sums 0", 0, [1])
    end(among, pair[ended], 1)
    assert_over(future)
    assert pair[ended].is_over and not pair[1 - ended].is_over


def test_ended_generation_is_not_served(among: Network, pair: tuple[Mailbox, Mailbox]) -> None:
    """Even where its offer is still there: the step is computed again by others."""
    pair[1].offer("sums 0", ["old", "old"])
    end(among, pair[1], 1)
    with pytest.raises(GenerationOverError):
        pair[0].fetch("sums 0", 0, [1])


def test_generation_that_ended_before_it_began_is_over(among: Network, pair: tuple[Mailbox, Mailbox]) -> None:
    end(among, pair[0], 2)
    pair[0].begin(generation(2, "a", "b"))
    assert pair[0].is_over
    with pytest.raises(GenerationOverError):
        pair[0].fetch("state", 0, [1])
    end(among, pair[0], 1)  # a late message
    assert pair[0].is_over
    pair[0].begin(generation(3, "a", "b"))
    assert not pair[0].is_over


def test_offer_of_the_generation_before_is_not_taken(
    among: Network, threads: ThreadPoolExecutor, pair: tuple[Mailbox, Mailbox]
) -> None:
    """A rank that begins the next one first waits for the other; its offer there has the same key."""
    pair[1].offer("sums 5", ["old", "old"])
    end(among, pair[0], 1)
    pair[0].begin(generation(2, "a", "b"))
    future = start_fetch(among, threads, pair[0], "sums 5", 0, [1])
    end(among, pair[1], 1)
    pair[1].begin(generation(2, "a", "b"))
    among.turn()
    assert not future.done()
    pair[1].offer("sums 5", ["new", "new"])
    assert future.result(20) == ["new"]


def test_older_generation_does_not_begin_again(among: Network, pair: tuple[Mailbox, Mailbox]) -> None:
    pair[1].begin(generation(2, "a", "b"))
    pair[1].begin(generation(1, "a", "b"))
    pair[0].begin(generation(2, "a", "b"))
    pair[1].offer("sums 0", ["new", "-"])
    assert pair[0].fetch("sums 0", 0, [1]) == ["new"]


def test_straggler_of_an_older_generation_gets_no_newer_offer(
    among: Network, threads: ThreadPoolExecutor, pair: tuple[Mailbox, Mailbox]
) -> None:
    pair[1].begin(generation(2, "b"))
    pair[1].offer("sums 0", ["new", "new"])
    future = start_fetch(among, threads, pair[0], "sums 0", 0, [1])
    end(among, pair[0], 1)
    assert_over(future)


# Losses -------------------------------------------------------------------------------------------------


def test_worker_that_is_gone_ends_the_fetch(
    among: Network, threads: ThreadPoolExecutor, pair: tuple[Mailbox, Mailbox]
) -> None:
    """Also that from the others, which may wait for a rank that waits for this one."""
    third = open_mailbox(among, "c")
    third.begin(generation(1, "a", "b"))
    pair[0].begin(generation(2, "a", "b", "c"))
    among.dead.add("b")
    with pytest.raises(GenerationOverError):
        pair[0].fetch("sums 0", 0, [1, 2])
    among.turn()
    assert among.waiting == 0 and not pair[0]._fetching


def test_mailbox_of_a_worker_is_one_until_it_is_removed(among: Network, threads: ThreadPoolExecutor) -> None:
    workers = [FakeWorker(among, name) for name in "ab"]
    boxes = [among.call(lambda worker=worker: mailbox(worker, "training")) for worker in workers]
    assert among.call(lambda: mailbox(workers[0], "training")) is boxes[0]
    assert among.call(lambda: mailbox(workers[0], "other")) is not boxes[0]
    for box in boxes:
        box.begin(generation(1, "a", "b"))
    future = start_fetch(among, threads, boxes[0], "sums 0", 0, [1])
    among.call(lambda: remove_mailbox(workers[1], "training"))
    assert_over(future)
    with pytest.raises(GenerationOverError):  # of a worker that has forgotten the training
        boxes[0].fetch("sums 0", 0, [1])
    for name in ("training", "other"):
        among.call(lambda name=name: remove_mailbox(workers[0], name))
    assert not mailbox_module._mailboxes
    assert set(workers[0].handlers) == {HANDLER}


# Divisions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lanes", "ranks"), [(1, 1), (4, 3), (6, 6), (7, 2), (64, 5)])
def test_micro_batches_are_divided_evenly(lanes: int, ranks: int) -> None:
    parts = divide(lanes, ranks)
    assert [lane for part in parts for lane in part] == list(range(lanes))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
