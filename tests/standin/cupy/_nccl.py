"""NCCL between processes of this machine, each with an emulated card, over sockets.

Only sends and receives, which a backend should use. Stricter than NCCL where that hangs or computes garbage: messages
that differ from what is expected are errors, and so is a host that waits too long (`_streams.STUCK_SECONDS`). As over
NVLink, nothing tells a process that another one died: what it waits for never comes.
"""

import json
import os
import queue
import socket
import struct
import threading
from typing import Any

import numpy as np

from . import _memory, _streams
from ._device import Device
from ._errors import CUDARuntimeError

NCCL_UINT8 = 1
_TYPES = {NCCL_UINT8: 1}  # bytes of the types that a backend may send
_ID_BYTES = 128
_MEANINGS = {
    1: "NCCL_ERROR_UNHANDLED_CUDA_ERROR: unhandled cuda error",
    2: "NCCL_ERROR_SYSTEM_ERROR: unhandled system error",
    4: "NCCL_ERROR_INVALID_ARGUMENT: invalid argument",
    5: "NCCL_ERROR_INVALID_USAGE: invalid usage",
}
_INVALID_ARGUMENT, _INVALID_USAGE = 4, 5


class NcclError(RuntimeError):
    """An error of NCCL; the stand-in adds why."""

    def __init__(self, status: int, why: str = "") -> None:
        self.status = status
        super().__init__(f"{_MEANINGS[status]}{f' ({why})' if why else ''}")


def get_version() -> int:
    return 22703


def get_unique_id() -> bytes:
    """Open the port at which all ranks meet."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_meet, args=(server,), name="nccl-root", daemon=True).start()
    return struct.pack("!H", server.getsockname()[1]) + os.urandom(_ID_BYTES - 2)


def _meet(server: socket.socket) -> None:
    """Wait for all ranks; tell each the ports of all, or the error that all of them get."""
    found: dict[int, tuple[socket.socket, tuple[Any, ...]]] = {}
    with server:
        while not found or len(found) < next(iter(found.values()))[1][0]:
            connection, _ = server.accept()
            try:
                size, rank, card, port = _receive(connection)
            except (OSError, EOFError):  # it is gone; the others go on waiting
                connection.close()
                continue
            found[rank] = connection, (size, card, port)
    told = [found[rank][1] for rank in sorted(found)]
    cards = [card for _, card, _ in told]
    why = ""
    if len(set(cards)) < len(cards):
        why = f"duplicate GPU: ranks use the cards {cards}"
    if len({size for size, _, _ in told}) > 1 or sorted(found) != list(range(len(found))):
        why = f"ranks {sorted(found)} say that there are {[size for size, _, _ in told]}"
    for connection, _ in found.values():
        with connection:
            _send(connection, (why, [port for _, _, port in told]))


class _Group(threading.local):
    """The sends and receives of this thread's group."""

    depth = 0
    error: "NcclError | None" = None  # of a call in the group: then none of them is done

    def __init__(self) -> None:
        self.calls: list[tuple[NcclCommunicator, int, int, int, int, bool]] = []


_group = _Group()


def groupStart() -> None:
    _group.depth += 1


def groupEnd() -> None:
    if not _group.depth:
        raise NcclError(_INVALID_USAGE, "groupEnd without groupStart")
    _group.depth -= 1
    if _group.depth:
        return
    calls, _group.calls = _group.calls, []
    error, _group.error = _group.error, None
    if error:
        raise error
    for communicator, stream in dict.fromkeys((call[0], call[4]) for call in calls):
        own = [call for call in calls if (call[0], call[4]) == (communicator, stream)]
        _streams.launches["nccl"] += 1
        _streams.add(_streams.stream_of(stream), _Transfer(communicator, own).run)


class NcclCommunicator:
    """The connections of a rank to all others."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:
        if not isinstance(commId, bytes):  # a tuple before CuPy 14
            raise TypeError(f"Argument 'commId' has incorrect type (expected bytes, got {type(commId).__name__})")
        if len(commId) != _ID_BYTES:
            raise ValueError(f"commId length {len(commId)} != {_ID_BYTES}.")
        self._peers: dict[int, _Peer] = {}
        self._open, self._error = True, ""
        port = struct.unpack("!H", commId[:2])[0]
        with socket.create_server(("127.0.0.1", 0)) as own:
            with socket.create_connection(("127.0.0.1", port)) as root:
                _send(root, (ndev, rank, Device().pci_bus_id, own.getsockname()[1]))
                why, ports = _receive(root)
            if why:
                raise NcclError(_INVALID_USAGE, why)
            for other in range(rank):
                connection = socket.create_connection(("127.0.0.1", ports[other]))
                _send(connection, rank)
                self._peers[other] = _Peer(connection)
            for _ in range(rank + 1, ndev):
                connection, _ = own.accept()
                other = _receive(connection)
                self._peers[other] = _Peer(connection)

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._add(sendbuf, count, datatype, peer, stream, True)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._add(recvbuf, count, datatype, peer, stream, False)

    def _add(self, address: int, count: int, datatype: int, peer: int, stream: int, sends: bool) -> None:
        groupStart()
        try:
            self._check_open()
            if datatype not in _TYPES or peer not in self._peers:
                raise NcclError(_INVALID_ARGUMENT, f"type {datatype}, peer {peer} of {sorted(self._peers)}")
            first, size, _ = _memory.arena()
            if not first <= address < address + count <= first + size:
                raise NcclError(_INVALID_ARGUMENT, "no device memory")
            _group.calls.append((self, address, count * _TYPES[datatype], peer, stream, sends))
        except NcclError as error:
            _group.error = error
        groupEnd()
        if _group.error:
            raise _group.error

    def check_async_error(self) -> None:
        self._check_open()
        if self._error:
            raise NcclError(_INVALID_USAGE, self._error)

    def abort(self) -> None:
        """What is under way ends, and leaves garbage where it would have received."""
        self._open = False
        for peer in self._peers.values():
            peer.close()

    def destroy(self) -> None:
        if self._open and any(stream._queue for stream in _streams._all_streams()):
            raise CUDARuntimeError("destroy waits for work under way, for ever if another rank died: use abort")
        self.abort()

    def _check_open(self) -> None:
        if not self._open:
            raise NcclError(_INVALID_ARGUMENT, "used after abort or destroy")


class _Transfer:
    """The sends and receives of a communicator in one group."""

    def __init__(self, communicator: NcclCommunicator, calls: list[tuple[NcclCommunicator, int, int, int, int, bool]]):
        self._communicator = communicator
        self._sends = [(call[1:3], call[3]) for call in calls if call[5]]
        self._receives = [(call[1:3], call[3]) for call in calls if not call[5]]

    def run(self, work: _streams.Work) -> None:
        """Start: read what is sent. Then the stream waits until all is received."""
        for (address, size), peer in self._sends:
            if self._communicator._open:
                self._communicator._peers[peer].send(_live(address, size, "an NCCL send").tobytes())
        for (address, size), _ in self._receives:
            _live(address, size, "an NCCL receive")[...] = 0xFF
        work.arrived = self._arrived

    def _arrived(self) -> bool:
        while self._receives and self._communicator._open and not self._communicator._error:
            (address, size), peer = self._receives[0]
            try:
                found = self._communicator._peers[peer].inbox.get_nowait()
            except queue.Empty:
                return False
            if len(found) != size:
                self._communicator._error = f"{size} bytes expected of rank {peer}, {len(found)} sent"
                return False
            _live(address, size, "an NCCL receive")[...] = np.frombuffer(found, np.uint8)
            del self._receives[0]
        return not (self._communicator._open and self._communicator._error)


class _Peer:
    """The connection to another rank. Threads send and receive, so that the emulator never waits for the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for function in (self._send_all, self._receive_all):
            threading.Thread(target=function, name="nccl-peer", daemon=True).start()

    def send(self, message: bytes) -> None:
        self._outbox.put(message)

    def close(self) -> None:
        self._outbox.put(None)
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other process is gone
            return

    def _send_all(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self._connection.sendall(struct.pack("!Q", len(message)) + message)
        except OSError:  # it is gone: nothing tells of it
            return

    def _receive_all(self) -> None:
        with self._connection:
            try:
                while True:
                    self.inbox.put(_read(self._connection, struct.unpack("!Q", _read(self._connection, 8))[0]))
            except (OSError, EOFError):
                return


def _live(address: int, size: int, what: str) -> np.ndarray:
    first, _, buffer = _memory.arena()
    values = np.ndarray((size,), np.uint8, buffer, address - first)
    _memory.check_live(values, what)
    return values


def _send(connection: socket.socket, value: Any) -> None:
    message = json.dumps(value).encode()
    connection.sendall(struct.pack("!Q", len(message)) + message)


def _receive(connection: socket.socket) -> Any:
    return json.loads(_read(connection, struct.unpack("!Q", _read(connection, 8))[0]))


def _read(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
