"""The sums of all ranks, over the connections between Dask's workers: see `cnn/training/slices.py`."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from cnn.backends.base import Array, Backend, MicroSums, StatisticsLayout
from cnn.training.micro_batches import PartialSum
from cnn.training.slices import Piece, add_pieces, host_pieces, own_pieces, slice_of
from jobs.training.ranks.mailbox import Mailbox
from jobs.training.ranks.messages import Generation


class MailboxExchange:
    """An `Exchange` of rank `rank` of a generation, from step `step` on. Arrays of a GPU go through the host's memory.

    Offers are named after the step, so that no rank takes one of an earlier step.
    """

    def __init__(
        self, mailbox: Mailbox, generation: Generation, rank: int, step: int, backend: Backend, layout: StatisticsLayout
    ) -> None:
        self._mailbox, self._rank, self._size = mailbox, rank, generation.size
        self._backend, self._layout = backend, layout
        self._others = [other for other in range(generation.size) if other != rank]
        self._step = step

    def total(self, nodes: Sequence[PartialSum], target: Array) -> MicroSums:
        """See `Exchange`. Raises GenerationOverError."""
        spans = [slice_of(len(target), rank, self._size) for rank in range(self._size)]
        mailbox, own_span, this = self._mailbox, spans[self._rank], self._step
        offered = [[] if rank == self._rank else self._pieces(nodes, span) for rank, span in enumerate(spans)]
        mailbox.offer(f"parts {this}", offered)
        fetched = {self._rank: own_pieces(nodes, own_span), **self._fetch(f"parts {this}")}
        own = add_pieces(chain.from_iterable(fetched[rank] for rank in range(self._size)), self._backend, self._layout)
        # All others have their part of this step, so they have fetched our sum of the step before.
        mailbox.offer(f"sums {this}", [self._backend.to_host(own.gradient)] * self._size, replaces=f"sums {this - 1}")
        target[own_span] = own.gradient
        for rank, gradient in self._fetch(f"sums {this}").items():  # (slice,)
            target[spans[rank]] = self._backend.asarray(gradient)
        mailbox.withdraw(f"parts {this}")  # all have added up theirs
        self._step += 1
        return own._replace(gradient=target)

    def _pieces(self, nodes: Sequence[PartialSum], span: slice) -> list[Piece]:
        return host_pieces(nodes, span, self._backend)

    def _fetch(self, key: str) -> dict[int, Any]:
        """What all other ranks offer to this one."""
        return dict(zip(self._others, self._mailbox.fetch(key, self._rank, self._others), strict=True))
