"""NCCL: arrays go from GPU to GPU, between processes that each have a card of their own, without the host's memory.

Only sends and receives: NCCL's own sums add up in an order that depends on the number of GPUs. Work of NCCL is done on
the current stream, as kernels are. Where another process dies, it is never done, and nothing tells so: while waiting
for it, also look whether the others are alive, and call `abort` if they are not.
"""

import socket
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn.backends.base import Array
from cnn.errors import DeviceFailedError, cuda_reason

ABORT_SECONDS = 60.0  # NCCL has hung in abort where the first connections failed


class NcclFailedError(DeviceFailedError):
    """NCCL does not work, or no longer: exchange the arrays in another way."""


def why_unusable() -> str:
    """Why NCCL cannot be used here, in one line; empty where it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's text of several lines
        from cupy.cuda import nccl
    return "" if nccl.available else "NCCL is not installed (pip install nvidia-nccl-cu12, or -cu13)"


def card() -> str:
    """What tells the current card from all others, on this machine and elsewhere: NCCL refuses two ranks on one."""
    import cupy

    boot = Path("/proc/sys/kernel/random/boot_id")  # of machines that are called the same
    machine = boot.read_text() if boot.exists() else ""
    return f"{socket.gethostname()} {machine.strip()} {cupy.cuda.Device().pci_bus_id}"


def unique_id() -> bytes:
    """What tells a group of ranks from others: made by one of them, for all. Raises NcclFailedError."""
    from cupy.cuda import nccl

    try:
        return bytes(nccl.get_unique_id())
    except Exception as error:
        raise _failed(error) from error


class Communicator:
    """The connections of rank `rank` to the others of a group. They are made in the background: see `is_connected`."""

    def __init__(self, size: int, group: bytes, rank: int) -> None:
        import cupy

        self._peers = [peer for peer in range(size) if peer != rank]
        self._comm: Any = None
        self._done = cupy.cuda.Event(disable_timing=True)  # the last exchange
        self._error: NcclFailedError | None = None
        self._lock, self._connecting, self._given_up = threading.Lock(), True, False
        arguments = size, group, rank, cupy.cuda.Device().id, cupy.cuda.get_current_stream()
        threading.Thread(target=self._connect, args=arguments, name="nccl-connect", daemon=True).start()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.abort()

    def is_connected(self) -> bool:
        """Whether all ranks are connected. Raises NcclFailedError."""
        with self._lock:
            if self._connecting:
                return False
        if self._error:
            raise self._error
        return self.is_done()

    def exchange(self, sends: Sequence[tuple[Array, int]], receives: Sequence[tuple[Array, int]]) -> None:
        """Start to send contiguous arrays to ranks, and to receive others from ranks, all at a time.

        The arrays from one rank to another have the same order and sizes on both sides. Raises NcclFailedError.
        """
        import cupy

        stream = cupy.cuda.get_current_stream()
        try:
            self._start(sends, receives, stream)
        except Exception as error:
            raise _failed(error) from error

    def is_done(self) -> bool:
        """Whether all that was started is done. Raises NcclFailedError where it never will be."""
        if self._done.done:
            return True
        try:
            self._comm.check_async_error()
        except Exception as error:
            raise _failed(error) from error
        return False

    def abort(self) -> None:
        """Close the connections, now: the arrays of exchanges under way have any values. Raises DeviceFailedError.

        NCCL's `destroy` would wait for the others.
        """
        with self._lock:
            self._given_up = True
            if self._connecting:  # NCCL cannot be told to stop: its thread aborts when, if ever, it is connected
                return
            comm, self._comm = self._comm, None
        if comm is not None:
            _abort(comm)

    def _connect(self, size: int, group: bytes, rank: int, device: int, stream: Any) -> None:
        """Connect to all others; waits for ever if one of them dies. What is exchanged makes NCCL connect each pair."""
        import cupy
        from cupy.cuda import nccl

        try:
            cupy.cuda.Device(device).use()
            comm = nccl.NcclCommunicator(size, group, rank)
            self._comm = comm
            with stream:
                greetings = cupy.zeros(2 * len(self._peers), "u1")  # (2 × other ranks,)
                sends = [(greetings[i : i + 1], peer) for i, peer in enumerate(self._peers)]
                receives = [(greetings[-i - 1 :][:1], peer) for i, peer in enumerate(self._peers)]
                self._start(sends, receives, stream)
        except Exception as error:
            self._error = _failed(error)
        with self._lock:
            self._connecting = False
            given_up = self._given_up
        if given_up:
            self.abort()

    def _start(self, sends: Sequence[tuple[Array, int]], receives: Sequence[tuple[Array, int]], stream: Any) -> None:
        from cupy.cuda import nccl

        nccl.groupStart()
        try:
            for array, peer in (each for each in sends if each[0].nbytes):
                self._comm.send(array.data.ptr, array.nbytes, nccl.NCCL_UINT8, peer, stream.ptr)
            for array, peer in (each for each in receives if each[0].nbytes):
                self._comm.recv(array.data.ptr, array.nbytes, nccl.NCCL_UINT8, peer, stream.ptr)
        finally:
            nccl.groupEnd()
        self._done.record(stream)


def _abort(comm: Any) -> None:
    thread = threading.Thread(target=comm.abort, name="nccl-abort", daemon=True)
    thread.start()
    thread.join(ABORT_SECONDS)
    if thread.is_alive():
        raise DeviceFailedError(
            f"NCCL did not stop within {ABORT_SECONDS:.0f} s after a rank was lost; run the same command again with"
            " --resume, and with LOGPOSE_NCCL=0 in the environment of all ranks if it happens again"
        )


def _failed(error: Exception) -> NcclFailedError:
    return NcclFailedError(f"NCCL failed ({cuda_reason(error)})")
