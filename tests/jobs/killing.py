"""`logpose` in a process of its own that notes what it is at, so that a kill can be aimed, and what it hit be told.

The process has a log. When it enters a function that has a mark, the mark is added in capitals, and in small letters
when it leaves. One write each: threads do not disturb each other, and a kill loses nothing that was noted.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

# A letter -> where the function is, as pkgutil.resolve_name has it, and its name there.
Marks: TypeAlias = Mapping[str, tuple[str, str]]

# More than any of these runs takes: one that goes on longer hangs.
LIMIT_SECONDS = 300

NOTING = """
import json, os, pkgutil, sys

log, marks, settings, *arguments = sys.argv[1:]
note = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def noted(mark, function):
    def call(*positional, **named):
        os.write(note, mark.upper().encode())
        result = function(*positional, **named)
        os.write(note, mark.lower().encode())
        return result
    return call

for mark, (place, name) in json.loads(marks).items():
    owner = pkgutil.resolve_name(place)
    setattr(owner, name, noted(mark, getattr(owner, name)))

for name, value in json.loads(settings).items():
    place, _, name = name.partition(":")
    setattr(pkgutil.resolve_name(place), name, value)

from jobs.cli import main
sys.exit(main(arguments))
"""


class Aim(NamedTuple):
    """When to kill: so many seconds after the log has the mark so many times."""

    mark: str
    times: int  # 0 for the start of the process
    seconds: float


class NotedRun:
    """A command line under way; its log and output are in `folder`, instead of an earlier run's.

    settings  module:NAME -> the value of a constant, so that a little data is treated as much would be
    """

    def __init__(
        self, folder: Path, marks: Marks, *arguments: object, settings: Mapping[str, int] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log, self._output = folder / "log", folder / "output"
        self._log.write_bytes(b"")
        given = (self._log, json.dumps(marks), json.dumps(settings or {}), *arguments)
        command = [sys.executable, "-W", "error", "-c", NOTING, *map(str, given)]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.began = time.monotonic()

    def wait_for(self, mark: str, times: int = 1) -> float:
        """Wait until the log has the mark so many times, or the process has ended; returns the seconds since its
        start.
        """
        while self.count(mark) < times and self.process.poll() is None:
            assert time.monotonic() - self.began < LIMIT_SECONDS, f"no {mark} for {LIMIT_SECONDS} s: {self.output}"
            time.sleep(0.001)
        return time.monotonic() - self.began

    def kill(self, aim: Aim) -> bool:
        """SIGKILL; returns whether there was anything left to kill."""
        self.wait_for(aim.mark, aim.times)
        time.sleep(aim.seconds)
        self.process.kill()
        code = self.process.wait(timeout=LIMIT_SECONDS)
        assert code in (0, -signal.SIGKILL), f"exit code {code}: {self.output}"
        return code != 0

    def finish(self, code: int = 0) -> float:
        """Wait for the end, which must have this exit code; returns the seconds since the start."""
        found = self.process.wait(timeout=LIMIT_SECONDS)
        assert found == code, f"exit code {found}: {self.output}"
        return time.monotonic() - self.began

    def count(self, mark: str) -> int:
        return self._log.read_bytes().count(mark.encode())

    def within(self, marks: Iterable[str]) -> str:
        """The first of these marks that was entered and not left; '' if there is none."""
        return next((mark for mark in marks if self.count(mark.upper()) > self.count(mark.lower())), "")

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")
