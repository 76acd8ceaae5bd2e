"""A process of its own for each side of a benchmark, told by its parent what to do and when.

A worker reads commands from its standard input, a line of JSON each, and answers with a line each. While it waits
for the next it takes no processor time, so the sides can be timed in turn without disturbing each other.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# After its turn a side's idle threads may spin for some milliseconds (OpenMP's and OpenBLAS's do by default).
PAUSE_S = 0.2


class Worker:
    """`python -m MODULE ARGUMENTS` in a process of its own, with `env` added to this process's environment."""

    def __init__(self, module: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.started = self.answered = time.perf_counter()  # the latter: when the last answer came
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | (env or {}),
        )  # fmt: skip

    def ask(self, command: str, **options: Any) -> Any:
        """What the worker answers to `command`; it is idle before, and after a pause again."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([command, options]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker died: {self._process.args}")
        self.answered = time.perf_counter()
        time.sleep(PAUSE_S)
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        if kind is not None:
            self._process.terminate()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve(commands: dict[str, Callable[..., Any]]) -> None:
    """The worker's side: run the commands that come in until there are no more."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # what a library prints must not look like an answer
        for line in sys.stdin:
            command, options = json.loads(line)
            answers.write(json.dumps(commands[command](**options)) + "\n")


def median_ms(work: Callable[[], Any], seconds: float, least: int = 2) -> float:
    """The median time of `work` in milliseconds, done over and over for about `seconds`."""
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


class Neighbours:
    """How many cores the machine's other processes kept busy since this was made, while our children came and went.

    Times taken beside a busy neighbour say little about either side.
    """

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def cores(self) -> float:
        """The mean number of them; every child must have ended. NaN where the system does not say."""
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return max(others, 0.0) / (time.perf_counter() - self._began)


def _busy_seconds() -> float:
    """Processor time that went to all processes of this machine since it started, or to its host's other guests."""
    if not Path("/proc/stat").exists():
        return float("nan")
    user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def available_cpus() -> int:
    """As many as this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_mb() -> float:
    """The most memory that this process ever held, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` would count what the parent held when it forked
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(found.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main_of_gemm() -> None:
    """The worker that multiplies matrices with NumPy's BLAS, on as many threads as OPENBLAS_NUM_THREADS says."""
    a, b = np.random.default_rng(0).standard_normal((2, 1024, 1024), np.float32)
    out = np.empty_like(a)
    serve({"gemm": lambda seconds, least: median_ms(lambda: np.matmul(a, b, out=out), seconds, least)})


if __name__ == "__main__":
    main_of_gemm()
