"""Run `logpose` in a new process that logs its progress, so that a kill can be timed and attributed to a phase.

Marked functions have a letter: the process appends it to a log in upper case when it enters the function, and in
lower case when it leaves. Each is a single write, so that threads do not interfere and a kill loses nothing.
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

# Letter -> the function's module or class (for pkgutil.resolve_name) and name.
Marks: TypeAlias = Mapping[str, tuple[str, str]]

# No run takes longer, unless it hangs.
LIMIT_SECONDS = 300

LOGGING_MAIN = """
import faulthandler, json, os, pkgutil, signal, sys

faulthandler.register(signal.SIGUSR1)  # shows where it hangs
log, marks, settings, *arguments = sys.argv[1:]
note = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def logged(mark, function):
    def call(*positional, **named):
        os.write(note, mark.upper().encode())
        result = function(*positional, **named)
        os.write(note, mark.lower().encode())
        return result
    return call

for mark, (place, name) in json.loads(marks).items():
    owner = pkgutil.resolve_name(place)
    setattr(owner, name, logged(mark, getattr(owner, name)))

for name, value in json.loads(settings).items():
    place, _, name = name.partition(":")
    setattr(pkgutil.resolve_name(place), name, value)

from jobs.cli import main
sys.exit(main(arguments))
"""


class Aim(NamedTuple):
    """When to kill: `seconds` after the mark is in the log `times` times."""

    mark: str
    times: int  # 0: the start of the process
    seconds: float


class LoggedRun:
    """A running command line. Its log and output replace those of an earlier run in `folder`.

    settings  module:NAME -> value of a constant, such as a smaller part size for a small test
    group     whether it has a process group of its own, with all processes that it starts
    """

    def __init__(
        self, folder: Path, marks: Marks, *arguments: object, settings: Mapping[str, int] | None = None,
        group: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log, self._output = folder / "log", folder / "output"
        self._log.write_bytes(b"")
        passed = (self._log, json.dumps(marks), json.dumps(settings or {}), *arguments)
        command = [sys.executable, "-W", "error", "-c", LOGGING_MAIN, *map(str, passed)]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=group
            )
        self.began = time.monotonic()

    def wait_for(self, mark: str, times: int = 1) -> float:
        """Wait until the mark is in the log `times` times, or the process has ended; return the seconds since start."""
        while self.count(mark) < times and self.process.poll() is None:
            assert time.monotonic() - self.began < LIMIT_SECONDS, f"no {mark} for {LIMIT_SECONDS} s: {self.output}"
            time.sleep(0.001)
        return time.monotonic() - self.began

    def kill(self, aim: Aim) -> bool:
        """Send SIGKILL; return whether the process was still running."""
        self.wait_for(aim.mark, aim.times)
        time.sleep(aim.seconds)
        self.process.kill()
        code = self.process.wait(timeout=LIMIT_SECONDS)
        assert code in (0, -signal.SIGKILL), f"exit code {code}: {self.output}"
        return code != 0

    def finish(self, code: int = 0) -> float:
        """Wait for the end, assert the exit code, and return the seconds since start."""
        found = self.process.wait(timeout=LIMIT_SECONDS)
        assert found == code, f"exit code {found}: {self.output}"
        return time.monotonic() - self.began

    def count(self, mark: str) -> int:
        return self._log.read_bytes().count(mark.encode())

    def within(self, marks: Iterable[str]) -> str:
        """Return the first of these marks that was entered and not left, or ''."""
        return next((mark for mark in marks if self.count(mark.upper()) > self.count(mark.lower())), "")

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")
