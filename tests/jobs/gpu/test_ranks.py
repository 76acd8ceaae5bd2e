"""Trainings of several ranks on emulated GPUs: the bits of one process, however sums travel, whichever rank dies."""

import re
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition
from typing import Any

import numpy as np
import psutil
import pytest

from cnn.backends import pick_backend
from cnn.backends.base import Array, Backend, MicroSums, StatisticsLayout
from cnn.training.micro_batches import PartialSum, TreeSum
from jobs.training.ranks import nccl
from jobs.training.ranks.exchange import MailboxExchange
from jobs.training.ranks.mailbox import GenerationOverError
from jobs.training.ranks.messages import Generation, divide
from pipeline.loader.micro_batches import MicroBatches
from tests import cuda_cpu
from tests.jobs.conftest import command
from tests.jobs.gpu.conftest import Gpu
from tests.jobs.gpu.test_training import assert_same_training
from tests.jobs.killing import LIMIT_SECONDS

# 48 images: batches of 20, 20 and 8 in seven micro-batches; of three ranks, one has nothing of the last batch.
RECIPE = (
    *("--model", "plain", "--set", "model.width=4", "--batch-size", "20", "--set", "train.micro_batch=3"),
    *("--epochs", "2", "--device", "cuda", "--cache", "none"),
)
FOUND, NOTE = "; sums over NCCL", "note: NCCL"


@pytest.fixture(scope="module")
def one(dataset: Path) -> Path:
    """A training in one process. Read it, do not change it."""
    if reason := cuda_cpu.why_unusable():
        pytest.skip(reason)
    run_dir = dataset.parent / "one"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cuda_cpu.environment(CUDA_CPU_CHECK="0").items():
            patch.setenv(name, value)
        assert Gpu()("train", dataset, run_dir, *RECIPE).code == 0
    return run_dir


@pytest.mark.parametrize(
    ("ranks", "cards", "installed", "over_nccl", "notes"),
    [(3, 3, "1", True, 0), (2, 1, "1", False, 0), (2, 2, "0", False, 1)],
    ids=["a card each", "two ranks on one card", "no NCCL"],
)
def test_ranks_give_the_bits_of_one_process(
    gpu: Gpu, dataset: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ranks: int, cards: int, installed: str, over_nccl: bool, notes: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("CUDA_CPU_DEVICES", str(cards))
    monkeypatch.setenv("CUDA_CPU_NCCL", installed)
    outcome = gpu("train", dataset, tmp_path / "run", *RECIPE, "--ranks", ranks)
    assert (outcome.code, outcome.err) == (0, "")
    words = " ".join(outcome.out.split())
    assert (FOUND in words, words.count("note")) == (over_nccl, notes)
    assert ("the sums of the ranks go through the host's memory" in words) == bool(notes)
    assert_same_training(tmp_path / "run", one)


def test_rank_that_dies_does_not_hang_the_others(
    gpu: Gpu, dataset: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in's NCCL never tells that a process died, as over NVLink."""
    monkeypatch.setenv("CUDA_CPU_DEVICES", "2")
    run_dir, output = tmp_path / "run", tmp_path / "output"
    line = command("train", dataset, run_dir, *RECIPE, "--ranks", 2, "--checkpoint-steps", 1)
    with output.open("wb") as file:
        process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)
    while not (run_dir / "last.safetensors").exists():
        assert process.poll() is None, output.read_text()
        psutil.wait_procs([], 0.01)
    children = psutil.Process(process.pid).children()
    workers = [child for child in children if "multiprocessing.spawn" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[-1].send_signal(signal.SIGKILL)
    assert process.wait(timeout=LIMIT_SECONDS) == 0, output.read_text()
    words = " ".join(output.read_text().split())
    assert FOUND in words and " from step " in words
    assert_same_training(run_dir, one)


# The exchange alone: ranks as threads


class Post:
    """What the mailboxes of some ranks have offered."""

    def __init__(self) -> None:
        self.changed, self.offers, self.is_over = Condition(), dict[tuple[int, int, str], Any](), False


class FakeMailbox:
    """A rank's mailbox among threads."""

    sent_bytes = 0

    def __init__(self, post: Post, rank: int) -> None:
        self._post, self._rank, self.number = post, rank, 0

    @property
    def is_over(self) -> bool:
        return self._post.is_over

    def offer(self, key: str, values: list[Any]) -> None:
        with self._post.changed:
            for rank, value in enumerate(values):
                self._post.offers[self._rank, rank, key] = value
            self._post.changed.notify_all()

    def fetch(self, key: str, rank: int, sources: list[int]) -> list[Any]:
        with self._post.changed:
            keys = [(source, rank, key) for source in sources]
            assert self._post.changed.wait_for(lambda: all(each in self._post.offers for each in keys), 60)
            return [self._post.offers[each] for each in keys]


class Ranks:
    """Some ranks of one generation, as threads that have a stream each."""

    def __init__(self, cupy: Any, backend: Backend, size: int, lanes: int) -> None:
        self.post = Post()
        self.generation = Generation(1, ("",) * size, divide(lanes, size))
        self.connections = [nccl.Connections(FakeMailbox(self.post, rank), backend) for rank in range(size)]
        self._streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(size)]

    def each(self, function: Any) -> list[Any]:
        """Call a function with each rank's number, all at a time."""

        def call(rank: int) -> Any:
            with self._streams[rank]:
                return function(rank)

        with ThreadPoolExecutor(len(self._streams)) as pool:
            return list(pool.map(call, range(len(self._streams))))

    def begin(self) -> list[list[str]]:
        return self.each(lambda rank: self.connections[rank].begin(self.generation, rank))


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for CuPy, where each rank has a card of its own."""
    if reason := cuda_cpu.why_unusable():
        pytest.skip(reason)
    with cuda_cpu.emulated_cuda() as cupy:
        assert not nccl.nccl.why_unusable()
        used = defaultdict[str, int](int)

        class Device(cupy.cuda.Device):  # type: ignore[misc, name-defined]
            @property
            def pci_bus_id(self) -> str:
                used["cards"] += 1
                return str(used["cards"])

        monkeypatch.setattr(cupy._nccl, "Device", Device)
        monkeypatch.setattr(cupy.cuda, "Device", Device)
        yield cupy
        cupy.cuda.discard_all()


def layout_of(backend: Backend) -> StatisticsLayout:
    """Of a batch norm of two channels."""
    places = np.array([[0, 1], [2, 3]], np.int32)  # (2, 2)
    return StatisticsLayout(*map(backend.asarray, (places, np.ones(2, np.float32), np.ones(2, np.int32))))  # (2,) each


def sums_of(cupy: Any, lane: int, rows: int) -> MicroSums:
    """Numbers of a micro-batch, whose sum depends on the order."""
    draw = np.random.default_rng(lane).standard_normal
    gradient, statistics = (cupy.asarray(draw(size).astype(np.float32)) for size in (13, 4))  # (13,), (4,)
    loss, correct = cupy.asarray(np.float32(draw())), cupy.asarray(np.int64(lane))  # () each
    return MicroSums(gradient, loss, correct, statistics, rows)


def tree_of(cupy: Any, backend: Backend, layout: StatisticsLayout, lanes: range, rows: list[int]) -> TreeSum:
    """The partial sums of some micro-batches, which have these numbers of images."""

    def merge(a: PartialSum, b: PartialSum) -> PartialSum:
        return PartialSum(a.first, b.last, backend.merge_sums(a.sums, b.sums, layout), None)

    tree = TreeSum(merge, lanes.start)
    for lane in lanes:
        if rows[lane]:
            tree.add(PartialSum(lane, lane + 1, sums_of(cupy, lane, rows[lane]), None))
    return tree


@pytest.mark.parametrize(("ranks", "lanes"), [(2, 2), (2, 7), (3, 8), (4, 5)])
def test_exchange_adds_up_what_one_process_does(emulator: Any, ranks: int, lanes: int) -> None:
    backend = pick_backend("cuda", precision="float32")
    layout = layout_of(backend)
    division = MicroBatches(rows=3 * lanes + 3 * (lanes // 2) + 1, batch_size=3 * lanes, micro_batch=3)
    assert division.steps == 2
    threads = Ranks(emulator, backend, ranks, lanes)
    assert threads.begin() == [[]] * ranks
    assert all(each.description == "sums over NCCL" for each in threads.connections)
    exchanges = [
        connections.exchange(threads.generation, rank, 4, division, layout)
        for rank, connections in enumerate(threads.connections)
    ]
    for step in (0, 1, 0):  # the second one has fewer rows: the last ranks may have nothing
        rows = [division.micro_rows(step, lane) for lane in range(lanes)]
        expected = host_of(tree_of(emulator, backend, layout, range(lanes), rows).total().sums)

        def total(rank: int, rows: list[int] = rows) -> list[Any]:
            nodes = tree_of(emulator, backend, layout, threads.generation.lanes[rank], rows).nodes
            target: Array = nodes[0].sums.gradient if nodes else emulator.empty(13, np.float32)  # (13,)
            return host_of(exchanges[rank].total(nodes, target))

        for found in threads.each(total):
            for values, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(values, other)


def host_of(sums: MicroSums) -> list[Any]:
    return [each.get() for each in sums[:4]] + [sums.rows]


def test_generation_that_ends_releases_ranks_that_wait(emulator: Any) -> None:
    backend = pick_backend("cuda", precision="float32")
    threads = Ranks(emulator, backend, 2, 2)
    threads.begin()
    array = emulator.zeros(3, np.float32)  # (3,)

    def wait(rank: int) -> str:
        connections = threads.connections[rank]
        if rank:
            threads.post.is_over = True
            return "gone"
        connections.swap([], [(array, 1)])
        try:
            connections.wait()
        except GenerationOverError:
            return f"over{connections.description}"
        return "done"

    assert threads.each(wait) == ["over", "gone"]


def test_rank_whose_nccl_fails_does_without(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "LOST_SECONDS", 0.1)
    backend, division = pick_backend("cuda", precision="float32"), MicroBatches(2, 2, 1)
    threads, layout = Ranks(emulator, backend, 2, 2), layout_of(backend)
    threads.begin()

    def total(rank: int) -> str:
        connections = threads.connections[rank]
        if rank:  # sends less than is expected
            connections.swap([(emulator.zeros(3, np.float32), 0)], [])
            connections.wait()
            return "sent"
        exchange = connections.exchange(threads.generation, rank, 0, division, layout)
        nodes = tree_of(emulator, backend, layout, range(1), [1, 1]).nodes
        with pytest.raises(GenerationOverError):
            exchange.total(nodes, nodes[0].sums.gradient)
        return "failed"

    assert threads.each(total) == ["failed", "sent"]
    threads.post.offers.clear()
    for found in threads.begin():
        assert re.fullmatch(r"note: NCCL failed \(NcclError: .* sent\)\); the sums .* host's memory", found[0])
    assert isinstance(threads.connections[0].exchange(threads.generation, 0, 0, division, layout), MailboxExchange)


def test_rank_that_cannot_connect_makes_all_use_the_mailbox(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "CONNECT_SECONDS", 1.0)
    connect = emulator._nccl.NcclCommunicator.__init__

    def fail(communicator: Any, size: int, group: bytes, rank: int) -> None:
        if rank == 1:
            raise emulator._nccl.NcclError(2, "no network")
        connect(communicator, size, group, rank)

    monkeypatch.setattr(emulator._nccl.NcclCommunicator, "__init__", fail)
    threads = Ranks(emulator, pick_backend("cuda", precision="float32"), 3, 3)
    notes = threads.begin()
    assert all(len(each) == 1 and each[0].startswith("note: NCCL ") for each in notes), notes
    assert not any(each.description for each in threads.connections)
    assert "no network" in notes[0][0]
    monkeypatch.undo()
    threads.post.offers.clear()
    assert threads.begin() == [[]] * 3, "said once"
    assert not any(each.description for each in threads.connections)
