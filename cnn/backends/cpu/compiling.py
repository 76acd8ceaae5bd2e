"""Compile the kernels that a job needs before it begins, in several processes.

Numba compiles a kernel when it is first called, one at a time, even if threads call several: on a fresh machine the
first training step would compile for twice as long. Here the work is rehearsed: a team lists its kernels instead of
running them (`team.listing`), and those that are not in the cache are compiled into it by processes of their own
(`compile_worker.py`), two or more at a time. The main process only waits, so that Ctrl-C is answered at once.

Of several processes that need kernels at the same time, such as the ranks of a training, one compiles, and the others
wait and load. Where no process can be started, or no kernel kept, this process compiles, as it would anyway.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import numpy as np

from cnn.backends.base import KernelProgress
from cnn.backends.cpu.compile_worker import to_json
from cnn.backends.cpu.team import listing
from cnn.backends.cpu.widths import find_kernel
from logpose.common.cpus import available_cpus
from logpose.common.kernels import cache_folder_of, is_ready
from logpose.common.locks import waiting_lock

# Kernels, and the types of the arguments that each is needed for.
Needed: TypeAlias = dict[Any, list[tuple[Any, ...]]]

_MAX_PROCESSES = 4  # more would wait for the one that compiles the largest kernel
_MIN_KERNELS = 3  # a process takes as long to start as to compile one or two
_PATIENCE = 120.0  # seconds without news of any process, or that another one is waited for, before we compile ourselves
_POLL = 0.2  # seconds; Windows does not interrupt waiting

# What a process runs: with our import path, so that it finds the same files, and not the current folder's.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
_START += "from cnn.backends.cpu.compile_worker import main; main()"


def prepare(rehearsal: Callable[[], object], progress: KernelProgress | None, processes: int) -> None:
    """Have the kernels ready that `rehearsal` runs: see `Backend.prepare`."""
    needed = list_kernels(rehearsal)
    missing = not_ready(needed)
    if not missing:
        return
    folder = next((found for kernel in missing if (found := cache_folder_of(kernel))), None)
    total, report = len(missing), progress or (lambda done, total: None)
    report(0, total)
    with waiting_lock(folder / "compiling.lock", _PATIENCE) if folder is not None else nullcontext():
        missing = not_ready(missing)  # another process may have compiled them
        if folder is not None and len(missing) >= _MIN_KERNELS:
            started = start_processes(min(processes, available_cpus(), _MAX_PROCESSES, len(missing)))
            compile_in(started, missing, lambda left: report(total - left, total))
            missing = not_ready(missing)
        while missing:  # could not be sent, or its process died
            kernel, signatures = missing.popitem()
            for signature in signatures:
                kernel.compile(signature)
            report(total - len(missing), total)


def list_kernels(rehearsal: Callable[[], object]) -> Needed:
    """The kernels that `rehearsal` calls, none of which is run."""
    needed: Needed = {}

    def note(kernel: Any, arguments: tuple[Any, ...]) -> None:
        if hasattr(kernel, "typeof_pyval"):  # others are NumPy's
            signature = tuple(map(kernel.typeof_pyval, arguments))
            if signature not in needed.setdefault(kernel, []):
                needed[kernel].append(signature)

    # An error does not matter: what was not listed is compiled when it is called.
    with listing(note), np.errstate(all="ignore"), suppress(Exception):
        rehearsal()
    return needed


def not_ready(needed: Needed) -> Needed:
    """The kernels that would have to be compiled; the others are loaded."""
    left = {kernel: [each for each in needed[kernel] if not is_ready(kernel, each)] for kernel in needed}
    return {kernel: signatures for kernel, signatures in left.items() if signatures}


class CompileProcess:
    """A process that compiles; it ends when it is closed, also in the middle of a kernel."""

    def __init__(self, answers: "SimpleQueue[tuple[CompileProcess, bool]]") -> None:
        self.module = ""  # of its last kernel
        self._answers = answers
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path)],  # -P: the current folder may hold a json.py
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # of which it needs none
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, kernel: Any, signatures: list[Any]) -> None:
        """Begin to compile. A process that has died says so through `answers`."""
        function, pipe = kernel.py_func, self._process.stdin
        assert pipe
        self.module = function.__module__
        with suppress(OSError):
            request = [function.__module__, function.__qualname__, lanes_of(kernel), signatures]
            print(json.dumps(request), file=pipe, flush=True)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            assert self._process.stdin
            self._process.stdin.close()

    def _listen(self) -> None:
        """Put (self, True) on `answers` for each kernel, and (self, False) at the end."""
        assert self._process.stdout
        with self._process.stdout as lines:
            for _ in lines:
                self._answers.put((self, True))
        self._answers.put((self, False))


def start_processes(count: int) -> list[CompileProcess]:
    """Start as many processes as the system lets us, up to `count`."""
    started: list[CompileProcess] = []
    answers: SimpleQueue[tuple[CompileProcess, bool]] = SimpleQueue()
    if sys.executable and not getattr(sys, "frozen", False):  # else it is not Python that would be started
        with suppress(OSError, RuntimeError):  # a limit on processes, threads or memory
            while len(started) < count:
                started.append(CompileProcess(answers))
    return started


def compile_in(processes: list[CompileProcess], kernels: Needed, report: Callable[[int], None]) -> None:
    """Have the processes compile as many of the kernels as they can; `report` is given the number that is left."""
    left = sendable(kernels)
    kept, busy, answers = len(kernels), set[CompileProcess](), SimpleQueue[Any]()

    def give(process: CompileProcess) -> None:
        if left:
            kernel = choose(left, process.module, {each.module for each in busy})
            process.send(kernel, left.pop(kernel))
            busy.add(process)

    try:
        for process in processes:
            answers = process._answers
            give(process)
        news = time.monotonic()
        while busy and time.monotonic() - news < _PATIENCE:
            with suppress(Empty):
                process, alive = answers.get(timeout=_POLL)
                news = time.monotonic()
                busy.discard(process)
                if alive:
                    kept -= 1
                    report(kept)
                    give(process)
    finally:
        for process in processes:
            process.close()


def sendable(kernels: Needed) -> dict[Any, list[Any]]:
    """The kernels that another process can import, with signatures in JSON.

    Only our own: to import a user's script may mean to run it.
    """
    found = {}
    for kernel, signatures in kernels.items():
        function = kernel.py_func
        own = function.__module__.startswith("cnn.")
        module = sys.modules.get(function.__module__)
        if own and find_kernel(module, function.__qualname__, lanes_of(kernel)) is kernel:
            with suppress(ValueError):
                found[kernel] = [[to_json(kind) for kind in signature] for signature in signatures]
    return found


def lanes_of(kernel: Any) -> int | None:
    """The width of a kernel's vectors; None for one of no particular width."""
    return getattr(kernel.py_func, "lanes", None)


def choose(kernels: dict[Any, list[Any]], module: str, busy: set[str]) -> Any:
    """The next kernel for a process whose last one was of `module`, while others are at the modules `busy`.

    One of the same module, which calls inner functions that the process knows by now; else of a module that no other
    process is at, for the same reason; of these the one with most left.
    """
    counts = Counter(kernel.py_func.__module__ for kernel in kernels)
    chosen = module if counts[module] else max(counts, key=lambda name: (name not in busy, counts[name]))
    return next(kernel for kernel in kernels if kernel.py_func.__module__ == chosen)
