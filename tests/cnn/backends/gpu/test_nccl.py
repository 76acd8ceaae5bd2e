"""Exchanges between GPUs over NCCL: ranks as threads, each with a stream, on the stand-in for NCCL."""

import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cnn.backends.gpu import nccl

SECONDS = 30  # that anything may take


class Ranks:
    """The communicators of some ranks, each with a stream."""

    def __init__(self, cupy: Any, size: int) -> None:
        self._cupy, self._group = cupy, nccl.unique_id()
        self.streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(size)]
        self.all: list[nccl.Communicator] = []

    def add(self) -> nccl.Communicator:
        """Start the next rank."""
        with self.streams[len(self.all)]:
            self.all.append(nccl.Communicator(len(self.streams), self._group, len(self.all)))
        return self.all[-1]

    def are_done(self) -> bool:
        """Whether all exchanges are done. Asks all ranks each time: an emulated stream works when it is asked."""
        done = [rank.is_done() for rank in self.all]
        return all(done)

    def are_connected(self) -> bool:
        done = [rank.is_connected() for rank in self.all]
        return all(done)

    def vector(self, values: Any) -> Any:
        """A device array (N,)."""
        return self._cupy.asarray(np.array(values, np.float32), blocking=True)


@pytest.fixture
def make_ranks(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ranks]]:
    """Make some ranks on as many cards, and connect them."""
    assert not nccl.why_unusable()
    cards = count()
    monkeypatch.setattr(emulator._nccl, "Device", lambda: SimpleNamespace(pci_bus_id=str(next(cards))))
    made = []

    def make(size: int, connected: bool = True) -> Ranks:
        ranks = Ranks(emulator, size)
        made.append(ranks)
        if connected:
            for _ in range(size):
                ranks.add()
            wait(ranks.are_connected)
        return ranks

    yield make
    for ranks in made:
        for rank in ranks.all:
            rank.abort()


def wait(is_done: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not is_done():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.usefixtures("stream_schedule")
def test_arrays_come_from_all_others_in_their_order(make_ranks: Callable[..., Ranks]) -> None:
    ranks = make_ranks(3)
    found = []
    for rank, communicator in enumerate(ranks.all):
        others = [other for other in range(3) if other != rank]
        with ranks.streams[rank]:
            # Rank r sends rank p an array (p + 1,), an empty one and one (1,), and copies what comes.
            sends = [
                (ranks.vector(values), other)
                for other in others
                for values in ([10 * rank + other] * (other + 1), [], [rank])
            ]
            receives = [(ranks.vector([0] * size), other) for other in others for size in (rank + 1, 0, 1)]
            communicator.exchange(sends, receives)
            found.append([(array.copy(), other) for array, other in receives])
    wait(ranks.are_done)
    for rank, receives in enumerate(found):
        expected = [
            (values, other)
            for other in range(3)
            if other != rank
            for values in ([10 * other + rank] * (rank + 1), [], [other])
        ]
        with ranks.streams[rank]:
            assert [(array.get().tolist(), other) for array, other in receives] == expected


def test_exchange_is_done_when_the_other_rank_does_its_part(make_ranks: Callable[..., Ranks]) -> None:
    ranks = make_ranks(2)
    arrays = [ranks.vector([1, 2, 3]), ranks.vector([0, 0, 0])]
    with ranks.streams[1]:
        ranks.all[1].exchange([], [(arrays[1], 0)])
        assert not any(ranks.all[1].is_done() for _ in range(3))
    with ranks.streams[0]:
        ranks.all[0].exchange([(arrays[0], 1)], [])
    wait(ranks.are_done)
    with ranks.streams[1]:
        assert arrays[1].get().tolist() == [1, 2, 3]


def test_aborted_exchange_ends_and_leaves_garbage(make_ranks: Callable[..., Ranks]) -> None:
    ranks = make_ranks(2)
    array = ranks.vector([0, 0])
    with ranks.streams[0]:
        ranks.all[0].exchange([], [(array, 1)])
        assert not ranks.all[0].is_done()
        ranks.all[0].abort()
        assert np.isnan(array.get()).all()
        with pytest.raises(nccl.NcclFailedError):
            ranks.all[0].exchange([(array, 1)], [])
    ranks.all[0].abort()


def test_sizes_that_differ_are_an_error(make_ranks: Callable[..., Ranks]) -> None:
    ranks = make_ranks(2)
    with ranks.streams[0]:
        ranks.all[0].exchange([(ranks.vector([1, 2]), 1)], [])
    with ranks.streams[1]:
        ranks.all[1].exchange([], [(ranks.vector([0]), 0)])
    with pytest.raises(nccl.NcclFailedError, match=r"NcclError: .*4 bytes expected of rank 0, 8 sent"):
        wait(ranks.are_done)


def test_two_ranks_on_one_card_are_refused(
    make_ranks: Callable[..., Ranks], emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator._nccl, "Device", emulator.cuda.Device)
    ranks = make_ranks(2, connected=False)
    for rank in (ranks.add(), ranks.add()):
        with pytest.raises(nccl.NcclFailedError, match="duplicate GPU"):
            wait(rank.is_connected)


def test_rank_that_gives_up_while_it_connects_leaves_nothing_open(make_ranks: Callable[..., Ranks]) -> None:
    ranks = make_ranks(2, connected=False)
    first = ranks.add()
    assert not first.is_connected()
    first.abort()
    second = ranks.add()  # so that NCCL connects the first one after all
    wait(lambda: not first._connecting)
    wait(lambda: first._comm is None)
    second.abort()


def test_cards_differ_by_their_place(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_CPU_DEVICES", "2")
    found = []
    for visible in ("0,1", "1,0", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found.append(nccl.card())
    assert found[0] == found[2] != found[1]


def test_nccl_that_is_not_installed(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_CPU_NCCL", "0")
    monkeypatch.delitem(sys.modules, "cupy.cuda.nccl", raising=False)
    monkeypatch.delattr(emulator.cuda, "nccl", raising=False)
    assert nccl.why_unusable().startswith("NCCL is not installed")
    monkeypatch.delenv("CUDA_CPU_NCCL")
    monkeypatch.delitem(sys.modules, "cupy.cuda.nccl")
    monkeypatch.delattr(emulator.cuda, "nccl")
    assert nccl.why_unusable() == ""
