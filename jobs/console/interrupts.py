"""Deferred Ctrl-C: the current step finishes first."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class DeferredInterrupt:
    """In a `with` block, the first Ctrl-C only sets `requested`; the second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = signal.default_int_handler

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)
