"""The loop of all fuzzers: numbered inputs, one after another, in a process with limited memory and time.

Every input follows from its number alone: the number of one that crashes the process, or fails, is printed, and
`--first N` begins with it.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

MEMORY = 2 * 10**9  # bytes of address space beyond what is in use once all libraries are loaded
SECONDS = 60  # per input

Try = Callable[[int], bool]  # of the input of a number: whether it was accepted. Raises what should not happen.


def limit_memory() -> None:
    """Allow this process `MEMORY` more than it uses now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def fuzz(module: str, description: str, prepare: Callable[[Path], Try]) -> int:
    """The command line of a fuzzer, whose module is run again for each process; returns the exit code.

    `prepare` gets an empty folder, loads all libraries, and returns the function that tries an input.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)  # seconds, and a folder with the file 'number'
    given = parser.parse_args()
    if given.work:
        _work(prepare, given.first, float(given.work[0]), Path(given.work[1]))
        return 0
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", module, "--first", str(given.first), "--work"]
        code = subprocess.run([*command, str(given.minutes * 60), folder], check=False).returncode
        if code:
            number = Path(folder, "number").read_text().strip()
            print(f"failed with exit code {code} at file {number}: run again with --first")
    return code


def _work(prepare: Callable[[Path], Try], first: int, seconds: float, folder: Path) -> None:
    note = os.open(folder / "number", os.O_WRONLY | os.O_CREAT)
    os.pwrite(note, f"{first:20}".encode(), 0)
    attempt = prepare(folder)
    limit_memory()
    end, number, accepted = time.monotonic() + seconds, first, 0
    while time.monotonic() < end:
        os.pwrite(note, f"{number:20}".encode(), 0)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        accepted += attempt(number)
        faulthandler.cancel_dump_traceback_later()
        number += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < MEMORY, f"a peak of {peak / 1e9:.2f} GB"
    counts = f"{number - first:,} files from {first}: {accepted:,} accepted"
    print(f"{counts}, {number - first - accepted:,} refused; peak {peak / 1e9:.2f} GB")
