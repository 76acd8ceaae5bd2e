"""Sums of micro-batches that several processes computed, added up slice by slice.

The flat gradient has as many slices as there are processes. Each process sends every other one its partial sums of that
one's slice, adds up its own slice in the order of the tree (`micro_batches.py`), and hands the sum round:

    process 0   sums │ slice 0 │ slice 1 │          slice 0 of all sums ──tree──▶ its sum ──▶ all
    process 1   sums │ slice 0 │ slice 1 │          slice 1 of all sums ──tree──▶ its sum ──▶ all

So each sends the vector about twice, however many there are (reduce-scatter and all-gather; Rabenseifner, 2004), and
all have the same bits as one process that computes everything. Batch norm's statistics, loss and counts are few: every
process adds up all of them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from cnn.backends.base import Array, Backend, MicroSums, StatisticsLayout
from cnn.training.micro_batches import PartialSum, TreeSum


class Exchange(Protocol):
    """Adds up the partial sums of all processes of a training."""

    def total(self, nodes: Sequence[PartialSum], target: Array) -> MicroSums:
        """Return the sum of those of all processes, whose gradient is `target` (size,).

        `nodes` are this process's own; their arrays may be changed, and `target` may be one of them.
        """
        ...


class Piece(NamedTuple):
    """A slice of the gradient of a partial sum, with everything else of that sum, on the host or the device."""

    first: int
    last: int
    rows: int
    gradient: Array  # (slice,)
    loss: Array  # ()
    correct: Array  # ()
    statistics: Array | None  # (state size,)


def slice_of(size: int, number: int, count: int) -> slice:
    """Return the slice with this number of a vector (size,) in `count` slices."""
    return slice(number * size // count, (number + 1) * size // count)


def host_pieces(nodes: Iterable[PartialSum], span: slice, backend: Backend) -> list[Piece]:
    """Copy a slice of this process's partial sums to the host, for another process."""
    return [_piece(node, backend.to_host(node.sums.gradient[span]), backend.to_host) for node in nodes]


def own_pieces(nodes: Iterable[PartialSum], span: slice) -> list[Piece]:
    """Return a slice of this process's partial sums, in their own memory."""
    return [_piece(node, node.sums.gradient[span], lambda values: values) for node in nodes]


def add_pieces(pieces: Iterable[Piece], backend: Backend, layout: StatisticsLayout) -> MicroSums:
    """Add up the pieces of a slice of all processes, in the order of their indices, on the device.

    Pieces in this process's own memory are changed.
    """

    def merge(first: PartialSum, second: PartialSum) -> PartialSum:
        with np.errstate(over="ignore", invalid="ignore"):  # the step's outcome says so
            return PartialSum(first.first, second.last, backend.merge_sums(first.sums, second.sums, layout), None)

    tree = TreeSum(merge)
    for piece in pieces:
        gradient, loss, correct = (backend.asarray(each) for each in (piece.gradient, piece.loss, piece.correct))
        statistics = None if piece.statistics is None else backend.asarray(piece.statistics)
        sums = MicroSums(gradient, loss, correct, statistics, piece.rows)
        tree.add(PartialSum(piece.first, piece.last, sums, None))
    return tree.total().sums


def _piece(node: PartialSum, gradient: Array, taken: Callable[[Array], Array]) -> Piece:
    sums = node.sums
    statistics = None if sums.statistics is None else taken(sums.statistics)
    return Piece(node.first, node.last, sums.rows, gradient, taken(sums.loss), taken(sums.correct), statistics)
