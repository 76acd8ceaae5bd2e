"""Benchmark workers: one process for each side of a comparison, driven by commands over a pipe.

A worker reads commands from its standard input, one line of JSON each, and answers with one line each. It is idle
between commands, so that the sides can be timed in alternation without disturbing each other. Also the helpers for
timing, background load and memory. Peers import this module in other environments: it needs only NumPy.
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
# Idle threads of OpenMP and OpenBLAS spin for some milliseconds by default.
PAUSE_S = 0.2


class Worker:
    """`PYTHON -m MODULE ARGUMENTS` in its own process, with `env` added to this process's environment.

    `python` is the interpreter, by default this one.
    """

    def __init__(
        self, module: str, *arguments: object, env: dict[str, str] | None = None, python: Path | None = None
    ) -> None:
        self.started = self.answered = time.perf_counter()  # `answered`: time of the last answer
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | (env or {}),
        )  # fmt: skip

    def ask(self, command: str, **options: Any) -> Any:
        """Send `command`, return the worker's answer, then pause until its threads are idle.

        Raises SystemExit if the worker died.
        """
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
    """Run in the worker: answer commands until standard input is closed."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # libraries' output must not look like an answer
        for line in sys.stdin:
            command, options = json.loads(line)
            answers.write(json.dumps(commands[command](**options)) + "\n")


def median_ms(work: Callable[[], Any], seconds: float, min_runs: int = 2) -> float:
    """The median time of `work` in milliseconds, repeated for about `seconds` and at least `min_runs` times."""
    times: list[float] = []
    while len(times) < min_runs or sum(times) < seconds:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


class BackgroundLoad:
    """The load by other processes since this object was created; timings under load are unreliable."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def cores(self) -> float:
        """The mean number of cores that other processes used; NaN where the system does not report it.

        All child processes must have ended.
        """
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return max(others, 0.0) / (time.perf_counter() - self._began)


def _busy_seconds() -> float:
    """The CPU time since boot of all processes, and of the host's other guests (steal)."""
    if not Path("/proc/stat").exists():
        return float("nan")
    user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = [resource.getrusage(scope) for scope in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def available_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_mb() -> float:
    """The peak memory of this process, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` would include the parent's memory at the fork
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(found.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def serve_gemm() -> None:
    """A worker that times NumPy's matrix product, on OPENBLAS_NUM_THREADS threads."""
    a, b = np.random.default_rng(0).standard_normal((2, 1024, 1024), np.float32)
    out = np.empty_like(a)
    serve({"gemm": lambda seconds, min_runs: median_ms(lambda: np.matmul(a, b, out=out), seconds, min_runs)})


if __name__ == "__main__":
    serve_gemm()
