"""Notice a share of unreadable files that jumps in the middle of a run, as when a drive or a network fails."""

from __future__ import annotations

from collections import deque

WINDOW = 50  # files
RARE, OFTEN = 0.1, 0.5  # shares of failures before the window, and in it


class FailureJump:
    """A watch over the files of a run, in the order in which they are read. Not thread-safe."""

    def __init__(self) -> None:
        self._recent: deque[bool] = deque()  # whether each of the last WINDOW files failed; frozen at a jump
        self._before = self._before_failed = 0  # files before these
        self._since = self._since_failed = 0  # files of the window, and after it
        self._jumped = False

    def count(self, failed: bool) -> None:
        """Count a file."""
        self._since += 1
        self._since_failed += failed
        if self._jumped:
            return
        self._recent.append(failed)
        if self._since > WINDOW:
            oldest = self._recent.popleft()
            self._since, self._since_failed = self._since - 1, self._since_failed - oldest
            self._before, self._before_failed = self._before + 1, self._before_failed + oldest
        rare = self._before >= WINDOW and self._before_failed <= RARE * self._before
        self._jumped = rare and self._since_failed >= OFTEN * WINDOW

    @property
    def note(self) -> str | None:
        """What was noticed, in words; None if there was no jump."""
        if not self._jumped:
            return None
        return (
            f"of the first {self._before:,} files {self._before_failed:,} could not be read, of the next"
            f" {self._since:,} files {self._since_failed:,}: has a drive or a network failed meanwhile?"
        )
