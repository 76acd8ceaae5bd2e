"""The record of a run, and timing on the device; both work with the tests' stand-in for CuPy too."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cupy
import numpy as np

# The tests' stand-in runs kernels on the CPU, slowly: its times mean nothing, and shapes must be tiny.
STANDIN = "standin" in Path(cupy.__file__).parts
REPEATS = 1 if STANDIN else 11  # of each measurement; the median counts
CALLS = 1 if STANDIN else 3  # between two events


class Record:
    """One JSON file with the results so far, replaced atomically after each: a killed run keeps them."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._deadline, self.folder = path, time.monotonic() + seconds, path.parent
        self.values: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def left(self) -> float:
        """Seconds until the stage is stopped."""
        return self._deadline - time.monotonic()

    def add(self, stage: str, key: str, value: Any) -> None:
        """Store `value`, and print it."""
        self.values.setdefault(stage, {})[key] = value
        unfinished = self._path.with_suffix(".new")
        unfinished.write_text(json.dumps(self.values, indent=1, default=_plain) + "\n", "utf-8")
        unfinished.replace(self._path)
        print(f"{stage}: {key}: {json.dumps(value, default=_plain)}", flush=True)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def synchronize() -> None:
    """Wait for the device: PyTorch's kernels too, which use the same one."""
    cupy.cuda.Device().synchronize()


def in_turns(sides: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """The median milliseconds of a call of each side, by events. Sides alternate, A B A B, after two calls each.

    Calls are timed by threes, so that the host is ahead of the device. Both libraries use the default stream, on which
    CuPy's events are recorded.
    """
    for work in (*sides.values(), *sides.values()):
        work()
    synchronize()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            before, after = cupy.cuda.Event(), cupy.cuda.Event()
            before.record()
            for _ in range(CALLS):
                work()
            after.record()
            after.synchronize()
            times[name].append(cupy.cuda.get_elapsed_time(before, after) / CALLS)
    return {name: float(np.median(each)) for name, each in times.items()}


def whole_steps(sides: Mapping[str, Callable[[], Any]], steps: int, rounds: int) -> dict[str, float]:
    """The median milliseconds of a step by the clock, host included: `steps` in a row, then wait; sides alternate."""
    for work in sides.values():
        work()
    synchronize()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            began = time.perf_counter()
            for _ in range(steps):
                work()
            synchronize()
            times[name].append((time.perf_counter() - began) * 1e3 / steps)
    return {name: float(np.median(each)) for name, each in times.items()}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over that of `expected`; infinite where a value is not finite."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    error = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    return error if np.isfinite(error) else float("inf")
