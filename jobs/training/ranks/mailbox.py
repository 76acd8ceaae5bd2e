"""The mailbox of a worker: what a rank offers to the others, and what it fetches from theirs.

Bytes travel over Dask's own connections between workers. A rank *fetches* what it needs, so that it notices at once
when the other one dies; the other one answers when it has it. The worker's event loop, a thread of its own, sends and
receives; it alone changes the state of a mailbox.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from distributed import Worker
from distributed.protocol import to_serialize

from jobs.training.ranks.messages import Generation

HANDLER = "logpose_fetch"


class GenerationOverError(Exception):
    """A rank was lost, or others are to join: the step is computed again by the next generation."""


class Mailbox:
    """The mailbox of a training on one worker."""

    def __init__(self, worker: Worker, training: str) -> None:
        self._worker, self._training = worker, training
        self._loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop
        self._generation: Generation | None = None
        self._over = 0  # the last generation that has ended
        self._offers: dict[str, Sequence[Any]] = {}  # for each rank
        self._changed = asyncio.Event()
        self._fetching: set[asyncio.Task[Any]] = set()
        self.sent_bytes = 0
        self.wire_seconds = 0.0  # that requests took, without what the other rank needed to have an answer

    # In the thread of the rank

    @property
    def is_over(self) -> bool:
        """Whether the generation has ended."""
        return self._generation is None or self._generation.number <= self._over

    def begin(self, generation: Generation) -> None:
        """Begin a generation, unless it has ended already."""

        async def begin() -> None:
            if self._generation is None or self._generation.number < generation.number:
                self._generation = generation
                self._offers.clear()
                self._change()

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result()

    def offer(self, key: str, values: Sequence[Any], replaces: str = "") -> None:
        """Offer a value to each rank. All ranks have fetched the offer `replaces`, which is withdrawn."""

        def put() -> None:
            self._offers.pop(replaces, None)
            self._offers[key] = values
            self._change()

        self._loop.call_soon_threadsafe(put)

    def withdraw(self, key: str) -> None:
        """Withdraw an offer that all ranks have fetched."""
        self._loop.call_soon_threadsafe(self._offers.pop, key, None)

    def fetch(self, key: str, rank: int, sources: Sequence[int]) -> list[Any]:
        """Fetch what the ranks `sources` offer to `rank`. Raises GenerationOverError."""
        generation = self._generation
        if generation is None or self.is_over:
            raise GenerationOverError
        fetched = asyncio.run_coroutine_threadsafe(self._fetch_all(generation, key, rank, sources), self._loop)
        return fetched.result()

    # In the event loop

    async def answer(self, number: int, key: str, rank: int) -> dict[str, Any]:
        """Answer another rank's request, as soon as there is an offer or the generation has ended."""
        began = time.monotonic()
        while True:
            if number <= self._over:
                return {"over": True}
            if self._generation is not None and self._generation.number == number and key in self._offers:
                value = self._offers[key][rank]
                self.sent_bytes += _size(value)
                return {"value": to_serialize(value), "waited": time.monotonic() - began}
            await self._changed.wait()

    def end(self, number: int) -> None:
        """End the generations up to this number: waiting ranks stop waiting."""
        self._over = max(self._over, number)
        for task in self._fetching:
            task.cancel()
        self._change()

    async def _fetch_all(self, generation: Generation, key: str, rank: int, sources: Sequence[int]) -> list[Any]:
        fetching = [asyncio.ensure_future(self._fetch(generation, key, rank, source)) for source in sources]
        self._fetching.update(fetching)
        try:
            fetched = await asyncio.gather(*fetching)
            self.wire_seconds += max((seconds for _, seconds in fetched), default=0.0)
            return [value for value, _ in fetched]
        except asyncio.CancelledError as error:
            raise GenerationOverError from error
        finally:
            for task in fetching:
                task.cancel()
            self._fetching.difference_update(fetching)

    async def _fetch(self, generation: Generation, key: str, rank: int, source: int) -> tuple[Any, float]:
        """What a rank offers, and the seconds that its bytes took."""
        began = time.monotonic()
        request = {"training": self._training, "number": generation.number, "key": key, "rank": rank}
        try:
            answer = await getattr(self._worker.rpc(generation.members[source]), HANDLER)(**request)
        except OSError as error:  # the other worker is gone
            raise GenerationOverError from error
        if answer is None or "over" in answer:  # None: the other worker has been started again
            raise GenerationOverError
        return answer["value"], time.monotonic() - began - answer["waited"]

    def _change(self) -> None:
        """Wake everyone who waits."""
        self._changed.set()
        self._changed = asyncio.Event()


_mailboxes: dict[tuple[str, str], Mailbox] = {}  # of this process, by training and worker


def mailbox(worker: Worker, training: str) -> Mailbox:
    """Return the mailbox of a training on a worker; in the event loop."""
    key = training, worker.address
    if key not in _mailboxes:
        _mailboxes[key] = Mailbox(worker, training)

        async def answer(training: str, number: int, key: str, rank: int) -> dict[str, Any]:
            found = _mailboxes.get((training, worker.address))
            return await found.answer(number, key, rank) if found else {"over": True}

        worker.handlers[HANDLER] = answer
    return _mailboxes[key]


def remove_mailbox(worker: Worker, training: str) -> None:
    """End a training on a worker."""
    found = _mailboxes.pop((training, worker.address), None)
    if found:
        found.end(2**62)


def _size(value: Any) -> int:
    """Bytes of all arrays in a value."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
