"""Ctrl-C as a wish instead of an exception: the step under way is finished first."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class CtrlC:
    """While the block runs, the first Ctrl-C only sets `asked`; the second interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = signal.default_int_handler

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)
