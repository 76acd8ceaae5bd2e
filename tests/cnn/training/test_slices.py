"""Sums of micro-batches that several processes computed: the same bits as in one process, also after a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.backends.base import Array, MicroSums
from cnn.backends.reference import ReferenceBackend
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Mix
from cnn.inputs.training_inputs import MicroBatch
from cnn.models import Plain
from cnn.network import Network
from cnn.training.averaging import EMA, Lookahead
from cnn.training.micro_batches import PartialSum, TreeSum, split_batch
from cnn.training.pending import BatchResult
from cnn.training.slices import Piece, add_pieces, host_pieces, own_pieces, slice_of
from cnn.training.trainer import Trainer
from tests.cnn.tiny_task import MEAN, SHAPE, STD, draw_images, make_recipe

IMAGES, LABELS = draw_images(200, 0)
SIZE, LANES = 4, 5  # of a micro-batch, and of a batch
ROWS = (20, 20, 7, 20, 3)  # of each step's batch: the third has two micro-batches, the last one
RECIPE = make_recipe(
    model=Plain(width=8, dropout=0.2), mix=Mix("either", 0.8, 0.7), augment=Augment(True, 0.1, 0.7),
    lookahead=Lookahead(every=2, start=0.0), ema=EMA(0.2), clip=0.5, micro_batch=SIZE,
)  # fmt: skip
KINDS = ("float64", "cpu")  # the reference backend in float64, and the CPU backend


class LostError(Exception):
    """Another process was lost."""


class Meeting:
    """Where the processes of a training exchange their sums; each is a thread of the test."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=60)
        self.pieces: dict[tuple[int, int], list[Piece]] = {}  # from a process to another one
        self.gradients: dict[int, np.ndarray] = {}  # (slice,) of each process


class Exchange:
    """The exchange of one process of a `Meeting`; `lost_at` is the phase in which another one is lost."""

    def __init__(self, meeting: Meeting, number: int, trainer: Trainer, lost_at: str = "") -> None:
        self.meeting, self.number, self.trainer, self.lost_at = meeting, number, trainer, lost_at

    def total(self, nodes: Sequence[PartialSum], target: Array) -> MicroSums:
        backend, meeting, number, count = self.trainer.backend, self.meeting, self.number, self.meeting.count
        spans = [slice_of(len(target), other, count) for other in range(count)]
        for other in set(range(count)) - {number}:
            meeting.pieces[number, other] = host_pieces(nodes, spans[other], backend)
        self.lose("parts")
        meeting.barrier.wait()
        found = [meeting.pieces[other, number] for other in range(count) if other != number]
        found.insert(number, own_pieces(nodes, spans[number]))
        assert self.trainer.layout
        own = add_pieces(chain.from_iterable(found), backend, self.trainer.layout)
        meeting.gradients[number] = backend.to_host(own.gradient)  # (slice,)
        target[spans[number]] = own.gradient
        self.lose("sums")
        meeting.barrier.wait()
        for other, span in enumerate(spans):
            target[span] = backend.asarray(meeting.gradients[other])
        meeting.barrier.wait()
        return own._replace(gradient=target)

    def lose(self, phase: str) -> None:
        if self.lost_at == phase:
            raise LostError(phase)


def make_trainer(kind: str) -> Trainer:
    backend, dtype = (ReferenceBackend(), np.float64) if kind == "float64" else (pick_backend("cpu", 1), np.float32)
    network = Network(RECIPE.model.layers(SHAPE, 3), SHAPE, backend, seed=1, dtype=dtype)
    return Trainer(network, RECIPE, np.array(MEAN), np.array(STD), train_rows=200)


def micro_batches(step: int) -> list[MicroBatch]:
    """Those of a step: as many as lanes, the last ones perhaps empty."""
    first = sum(ROWS[:step])
    rows = np.arange(first, first + ROWS[step])  # (B,)
    parts = split_batch(IMAGES[rows], LABELS[rows], rows, SIZE)
    empty = MicroBatch(IMAGES[:0], LABELS[:0], rows[:0])  # (0, H, W, 3), (0,), (0,)
    return parts + [empty] * (LANES - len(parts))


def compute(trainer: Trainer, first: int, last: int) -> TreeSum:
    """The sums of the micro-batches first, …, last - 1 of the trainer's step."""
    return trainer.compute(micro_batches(trainer.step)[first:last], ROWS[trainer.step], first)


def step_together(trainers: list[Trainer], borders: Sequence[int]) -> list[BatchResult]:
    """A step of processes, of which number n computes the micro-batches borders[n], …, borders[n + 1] - 1."""
    meeting = Meeting(len(trainers))

    def step(number: int) -> BatchResult:
        trainer = trainers[number]
        own = compute(trainer, borders[number], borders[number + 1])
        return trainer.start_update(trainer.combine(own, Exchange(meeting, number, trainer))).result()

    with ThreadPoolExecutor(len(trainers)) as threads:
        return list(threads.map(step, range(len(trainers))))


def step_alone(trainer: Trainer) -> BatchResult:
    return trainer.start_micro_batches(micro_batches(trainer.step), ROWS[trainer.step]).result()


def assert_same_bits(one: Trainer, other: Trainer) -> None:
    assert one.step == other.step and one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert tensor.tobytes() == other.tensors()[name].tobytes(), name
    for name, tensor in one.eval_network.tensors().items():
        assert tensor.tobytes() == other.eval_network.tensors()[name].tobytes(), name


def assert_no_memory_twice(trainer: Trainer) -> None:
    """All memory that is not in use is there once, and no two results of micro-batches would share it."""
    places = [memory.gradients.flat.ctypes.data for memory in trainer._memory]
    places += [memory.statistics.flat.ctypes.data for memory in trainer._memory if memory.statistics]
    assert len(set(places)) == 2 * len(trainer._memory)
    assert trainer.network.gradients in [memory.gradients for memory in trainer._memory]


# Divisions ----------------------------------------------------------------------------------------------


def even(count: int) -> Callable[[int], Sequence[int]]:
    return lambda step: [number * LANES // count for number in range(count + 1)]


def uneven(count: int) -> Callable[[int], Sequence[int]]:
    """Another division in each step; some processes have no micro-batches."""
    return lambda step: [0, *sorted(np.random.default_rng(step).integers(0, LANES + 1, count - 1).tolist()), LANES]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("division", [even, uneven])
def test_any_number_of_processes_makes_the_update_of_one(
    kind: str, count: int, division: Callable[[int], Callable[[int], Sequence[int]]]
) -> None:
    """Weights, batch norm's state, optimizer, averages, loss and correct rows, bit for bit."""
    alone, trainers = make_trainer(kind), [make_trainer(kind) for _ in range(count)]
    for step in range(len(ROWS)):
        expected = step_alone(alone)
        assert step_together(trainers, division(count)(step)) == [expected] * count
    for trainer in trainers:
        assert_same_bits(trainer, alone)
        assert_no_memory_twice(trainer)
        assert len(trainer._memory) <= 4  # log2(5) + 1


def test_bits_depend_on_the_order_of_the_sums() -> None:
    """Or else the test above would say little."""
    trainer = make_trainer("cpu")
    sums = [compute(trainer, lane, lane + 1).nodes[0].sums for lane in range(LANES)]
    forwards, backwards = (sum(each.gradient for each in order) for order in (sums, sums[::-1]))  # (size,) each
    assert forwards.tobytes() != backwards.tobytes()


@pytest.mark.parametrize(("size", "count"), [(10, 3), (7, 7), (3, 5), (1, 1)])
def test_slices_cover_a_vector_once(size: int, count: int) -> None:
    slices = [slice_of(size, number, count) for number in range(count)]
    assert slices[0].start == 0 and slices[-1].stop == size
    assert all(one.stop == other.start for one, other in pairwise(slices))
    lengths = [each.stop - each.start for each in slices]
    assert max(lengths) - min(lengths) <= 1


def test_pieces_of_the_host_are_copies() -> None:
    """So that another process can read them while this one goes on."""
    trainer = make_trainer("cpu")
    own = compute(trainer, 0, 4)
    (node,) = own.nodes
    (piece,), (here,) = host_pieces([node], slice(2, 9), trainer.backend), own_pieces([node], slice(2, 9))
    assert (piece.first, piece.last, piece.rows) == (0, 4, 16)
    for name in ("gradient", "loss", "correct", "statistics"):
        np.testing.assert_array_equal(getattr(piece, name), getattr(here, name))
    assert not np.shares_memory(piece.gradient, node.sums.gradient)
    assert piece.statistics is not None and not np.shares_memory(piece.statistics, node.sums.statistics)
    assert np.shares_memory(here.gradient, node.sums.gradient)


# Failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", ["parts", "sums"])
@pytest.mark.parametrize("borders", [(0, 2, 5), (0, 0, 5), (0, 3, 5)])
def test_step_can_be_computed_again_after_a_failed_exchange(kind: str, phase: str, borders: tuple[int, ...]) -> None:
    """Nothing of the failed one is left, and the memory of its sums is used again."""
    alone, trainers = make_trainer(kind), [make_trainer(kind) for _ in range(2)]
    counts = []
    for _ in range(3):
        step_alone(alone)
        before = [trainer.tensors() for trainer in trainers]
        for _ in range(3):
            fail_together(trainers, borders, phase)
            for trainer, tensors in zip(trainers, before, strict=True):
                assert all(tensor.tobytes() == tensors[name].tobytes() for name, tensor in trainer.tensors().items())
                assert_no_memory_twice(trainer)
        counts.append([len(trainer._memory) for trainer in trainers])
        step_together(trainers, borders)
        counts.append([len(trainer._memory) for trainer in trainers])
        for trainer in trainers:
            assert_same_bits(trainer, alone)
            assert_no_memory_twice(trainer)
    assert all(each == counts[0] for each in counts)


def fail_together(trainers: list[Trainer], borders: Sequence[int], phase: str) -> None:
    """A step in whose exchange each of the processes loses another one."""
    meeting = Meeting(len(trainers))

    def step(number: int) -> None:
        trainer = trainers[number]
        own = compute(trainer, borders[number], borders[number + 1])
        with pytest.raises(LostError):
            trainer.combine(own, Exchange(meeting, number, trainer, phase))

    with ThreadPoolExecutor(len(trainers)) as threads:
        list(threads.map(step, range(len(trainers))))


def test_memory_of_the_sum_is_in_use_until_the_update() -> None:
    """The next step's micro-batches must not be computed into it."""
    trainer = make_trainer("cpu")
    total = trainer.combine(compute(trainer, 0, LANES), Exchange(Meeting(1), 0, trainer))
    (whole,) = total.nodes
    assert whole.memory is not None and whole.sums.gradient is whole.memory.gradients.flat
    assert whole.memory not in trainer._memory
    trainer.start_update(total).result()
    assert whole.memory in trainer._memory
