"""Workers without Dask: an event loop in a thread, and mailboxes that ask each other there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from jobs.training.ranks.mailbox import HANDLER, Mailbox
from jobs.training.ranks.messages import Generation


class Network:
    """Workers that reach each other by their addresses, until they die."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.workers: dict[str, FakeWorker] = {}
        self.boxes: list[Mailbox] = []
        self.dead: set[str] = set()
        self.waiting = 0  # requests without an answer

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function in the event loop."""

        async def called() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self.loop).result(60)

    def turn(self) -> None:
        """Let the event loop do what it has to, such as answering and ending requests."""
        for _ in range(5):
            self.call(lambda: None)


class FakeWorker:
    """What a `Mailbox` uses of a Dask worker."""

    def __init__(self, network: Network, address: str) -> None:
        self.address, self._network = address, network
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.loop = SimpleNamespace(asyncio_loop=network.loop)
        network.workers[address] = self

    def rpc(self, address: str) -> Any:
        async def request(**arguments: Any) -> Any:
            if address in self._network.dead:
                raise OSError(f"connection to {address} refused")
            self._network.waiting += 1
            try:
                answer = await self._network.workers[address].handlers[HANDLER](**arguments)
            finally:
                self._network.waiting -= 1
            return {name: getattr(value, "data", value) for name, value in answer.items()}

        return SimpleNamespace(**{HANDLER: request})


class RecordingMailbox(Mailbox):
    """A mailbox that knows the generation and the key of each offer; `before_offer` may delay one."""

    def __init__(self, worker: Any, training: str) -> None:
        super().__init__(worker, training)
        self.address: str = worker.address
        self.offered: list[tuple[int, str]] = []
        self.before_offer: Callable[[str], None] = lambda key: None

    def offer(self, key: str, values: Sequence[Any], replaces: str = "") -> None:
        assert self._generation
        self.before_offer(key)
        self.offered.append((self._generation.number, key))
        super().offer(key, values, replaces)


@contextmanager
def network() -> Iterator[Network]:
    """Start an event loop in a thread. At the end no one waits for an answer any longer, also after a failed test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started = Network(loop)
    try:
        yield started
    finally:
        for box in started.boxes:
            started.call(lambda box=box: box.end(2**62))
        started.turn()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def open_mailbox(among: Network, address: str, training: str = "training") -> RecordingMailbox:
    """A mailbox on a worker of its own, which answers the others."""
    worker = FakeWorker(among, address)
    box = RecordingMailbox(worker, training)
    among.boxes.append(box)
    worker.handlers[HANDLER] = lambda training, **request: box.answer(**request)
    return box


def generation(number: int, *members: str, lanes: tuple[range, ...] = ()) -> Generation:
    return Generation(number, members, lanes)
