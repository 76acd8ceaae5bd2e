"""The sums of all ranks, from GPU to GPU over NCCL: see `cnn/training/slices.py`.

Used where each rank of a generation has a card of its own, and NCCL; elsewhere the sums go over the mailbox, with the
same bits. Which rank has which partial sums follows from the division of the batch, so nothing but arrays is sent.
"""

import os
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from cnn.backends.base import Array, Backend, MicroSums, StatisticsLayout
from cnn.backends.gpu import nccl
from cnn.training.micro_batches import PartialSum, TreeSum
from cnn.training.slices import Exchange, Piece, add_pieces, own_pieces, slice_of
from jobs.training.ranks.exchange import MailboxExchange
from jobs.training.ranks.mailbox import GenerationOverError, Mailbox
from jobs.training.ranks.messages import Generation
from pipeline.loader.micro_batches import MicroBatches

POLL_SECONDS = 1e-4  # between looks whether an exchange is done, or the generation over
CONNECT_SECONDS = 60.0  # a rank that failed to connect does not tell NCCL on the others
LOST_SECONDS = 10.0  # from an error of NCCL until the engine knows that a rank was lost, if that is the cause
LATE = "NCCL has not connected all ranks in"
SWITCH = "LOGPOSE_NCCL"  # environment variable; 0: without NCCL


class Connections:
    """The connections of a rank to the others, from generation to generation.

    sent_bytes  of all exchanges so far
    """

    def __init__(self, mailbox: Mailbox, backend: Backend) -> None:
        self._mailbox, self._backend = mailbox, backend
        self._communicator: nccl.Communicator | None = None
        self._failed = ""  # why this rank does without NCCL from now on
        self._told: set[str] = set()
        self._sent = 0

    @property
    def description(self) -> str:
        """How sums travel, for the user; empty for the mailbox."""
        return "sums over NCCL" if self._communicator else ""

    @property
    def sent_bytes(self) -> int:
        return self._sent + self._mailbox.sent_bytes

    def begin(self, generation: Generation, rank: int) -> list[str]:
        """Connect to the others of a generation, as all its ranks do. Returns what to tell the user.

        Raises GenerationOverError.
        """
        self.close()
        if generation.size == 1:
            return []
        others = [other for other in range(generation.size) if other != rank]

        def share(key: str, value: Any) -> list[Any]:
            """The values of all ranks, this one's first."""
            self._mailbox.offer(key, [value] * generation.size)
            return [value, *self._mailbox.fetch(key, rank, others)]

        cards, reasons = zip(*share("cards", self._card()), strict=True)
        if "" in cards or len(set(cards)) < len(cards):
            return []
        if not any(reasons):
            if rank == 0:
                group, reason = _new_group()
                self._mailbox.offer("group", [(group, reason)] * generation.size)
            else:
                ((group, reason),) = self._mailbox.fetch("group", rank, [0])
            own = reason or self._connect(generation.size, group, rank)
            reasons = tuple(share("connected", own))
            self._failed = own
        found = sorted(filter(None, reasons), key=lambda reason: reason.startswith(LATE))
        if not found:
            return []
        reason = found[0]  # rather the cause than that others waited
        self.close()
        known, self._told = reason in self._told, {*self._told, reason}
        return [] if known else [f"note: {reason}; the sums of the ranks go through the host's memory"]

    def exchange(
        self, generation: Generation, rank: int, step: int, division: MicroBatches, layout: StatisticsLayout
    ) -> Exchange:
        """The exchange of this rank with the others, from step `step` on."""
        if self._communicator:
            return NcclExchange(self, generation, rank, step, division, self._backend, layout)
        return MailboxExchange(self._mailbox, generation, rank, step, self._backend, layout)

    def swap(self, sends: Sequence[tuple[Array, int]], receives: Sequence[tuple[Array, int]]) -> None:
        """See `Communicator.exchange`."""
        assert self._communicator, "connected"
        self._communicator.exchange(sends, receives)
        self._sent += sum(array.nbytes for array, _ in sends)

    def wait(self) -> None:
        """Wait until the exchanges are done. Raises GenerationOverError and NcclFailedError."""
        assert self._communicator, "connected"
        self._wait(self._communicator.is_done)

    def fail(self, error: nccl.NcclFailedError) -> None:
        """Do without NCCL from now on, unless it failed because the generation is over."""
        self.close()
        until = time.monotonic() + LOST_SECONDS
        while not self._mailbox.is_over and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        if not self._mailbox.is_over:
            self._failed = str(error)

    def close(self) -> None:
        """Close the connections."""
        communicator, self._communicator = self._communicator, None
        if communicator:
            communicator.abort()

    def _card(self) -> tuple[str, str]:
        """This rank's card, and why it cannot use NCCL; no card where it is not to."""
        if self._backend.name != "cuda" or os.environ.get(SWITCH) == "0":
            return "", ""
        return nccl.card(), self._failed or nccl.why_unusable()

    def _connect(self, size: int, group: bytes, rank: int) -> str:
        """Connect to all others; return what went wrong, if anything. Raises GenerationOverError."""
        communicator = self._communicator = nccl.Communicator(size, group, rank)
        until = time.monotonic() + CONNECT_SECONDS

        def is_connected() -> bool:
            if time.monotonic() > until:
                raise nccl.NcclFailedError(f"{LATE} {CONNECT_SECONDS:.0f} s")
            return communicator.is_connected()

        try:
            self._wait(is_connected)
        except nccl.NcclFailedError as error:
            return str(error)
        return ""

    def _wait(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            if self._mailbox.is_over:
                self.close()
                raise GenerationOverError
            time.sleep(POLL_SECONDS)


class NcclExchange:
    """An `Exchange` of rank `rank` of a generation, from step `step` on."""

    def __init__(
        self, connections: Connections, generation: Generation, rank: int, step: int, division: MicroBatches,
        backend: Backend, layout: StatisticsLayout,
    ) -> None:
        self._connections, self._lanes, self._rank, self._step = connections, generation.lanes, rank, step
        self._division, self._backend, self._layout = division, backend, layout
        self._others = [other for other in range(generation.size) if other != rank]

    def total(self, nodes: Sequence[PartialSum], target: Array) -> MicroSums:
        """See `Exchange`. Raises GenerationOverError."""
        try:
            return self._total(nodes, target)
        except nccl.NcclFailedError as error:
            self._connections.fail(error)
            raise GenerationOverError from error

    def _total(self, nodes: Sequence[PartialSum], target: Array) -> MicroSums:
        connections, rank, others = self._connections, self._rank, self._others
        spans = [slice_of(len(target), number, len(self._lanes)) for number in range(len(self._lanes))]
        own_span, step = spans[rank], self._step % self._division.steps
        assert [Place.of(node) for node in nodes] == places(self._lanes[rank], self._division, step)
        pieces = {rank: own_pieces(nodes, own_span)}
        for other in others:
            expected = places(self._lanes[other], self._division, step)
            pieces[other] = [self._empty(place, target, own_span) for place in expected]
        offered = {other: own_pieces(nodes, spans[other]) for other in others}

        def arrays_of(parts: dict[int, list[Piece]]) -> list[tuple[Array, int]]:
            return [(array, other) for other in others for piece in parts[other] for array in _arrays(piece, target)]

        connections.swap(arrays_of(offered), arrays_of(pieces))
        ordered = chain.from_iterable(pieces[number] for number in range(len(self._lanes)))
        own = add_pieces(ordered, self._backend, self._layout)
        target[own_span] = own.gradient
        connections.swap(
            [(target[own_span], other) for other in others], [(target[spans[other]], other) for other in others]
        )
        connections.wait()  # before the update: where a rank is lost, the weights stay as they are
        self._step += 1
        return own._replace(gradient=target)

    def _empty(self, place: "Place", target: Array, span: slice) -> Piece:
        """Memory for the piece of another rank's partial sum."""
        xp, dtype = self._backend.xp, target.dtype
        gradient, statistics = xp.empty(span.stop - span.start, dtype), xp.empty(self._layout.places.size, dtype)
        # (slice,), (state size,), and () each
        return Piece(*place, gradient, xp.empty((), dtype), xp.empty((), np.int64), statistics)


class Place(NamedTuple):
    """A partial sum: of which micro-batches, and of how many images."""

    first: int
    last: int
    rows: int

    @classmethod
    def of(cls, node: PartialSum) -> "Place":
        return cls(node.first, node.last, node.sums.rows)


def places(lanes: range, division: MicroBatches, step: int) -> list[Place]:
    """The partial sums that a rank has which computes some micro-batches of the batch of a step of an epoch."""

    def leaf(first: int, last: int, rows: int) -> PartialSum:
        return PartialSum(first, last, MicroSums(None, None, None, None, rows), None)

    tree = TreeSum(lambda a, b: leaf(a.first, b.last, a.sums.rows + b.sums.rows), lanes.start)
    for lane in lanes:
        rows = division.micro_rows(step, lane)
        if rows:
            tree.add(leaf(lane, lane + 1, rows))
    return [Place.of(node) for node in tree.nodes]


def _arrays(piece: Piece, target: Array) -> list[Array]:
    """What travels of a piece, in types that all ranks know."""
    loss, correct = piece.loss.astype(target.dtype, copy=False), piece.correct.astype(np.int64, copy=False)  # () each
    return [piece.gradient, loss, correct, *([] if piece.statistics is None else [piece.statistics])]


def _new_group() -> tuple[bytes, str]:
    """What tells the group from others, or why there is none."""
    try:
        return nccl.unique_id(), ""
    except nccl.NcclFailedError as error:
        return b"", str(error)
