"""Deferred Ctrl-C: the current step finishes first."""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self


class DeferredInterrupt:
    """In a `with` block, the first Ctrl-C only sets `requested`; the second one raises KeyboardInterrupt.

    Only in the main thread: Python handles signals in no other, so there the block changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handles = False
        self._previous: Any = signal.default_int_handler

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if os.isatty(2):  # where the terminal has shown ^C, and a step may take seconds
            with suppress(OSError):  # not print: a signal may come in the middle of one
                os.write(2, b"\ninterrupting after the current step; press Ctrl-C again to stop at once\n")

    def __enter__(self) -> Self:
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, self._previous)
