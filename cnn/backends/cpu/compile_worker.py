"""A process that compiles kernels into the cache, for the one that started it (`compiling.py`).

It reads one kernel a line from its standard input, `[module, name, lanes, [signature, ...]]` in JSON, and answers with
a line when that kernel is compiled. It ends at once when its input does: the other process no longer needs it, or is
gone.
"""

import gc
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from numba import types

from cnn.backends.cpu.widths import find_kernel


def to_json(kind: Any) -> Any:
    """The Numba type of an argument as a JSON value. Raises ValueError for one that kernels do not usually have."""
    if isinstance(kind, types.Array):
        value: Any = [str(kind.dtype), kind.ndim, kind.layout, not kind.mutable, kind.aligned]
    elif isinstance(kind, types.BaseTuple) and not isinstance(kind, types.BaseNamedTuple):
        value = {"tuple": [to_json(each) for each in kind]}
    else:
        value = str(kind)
    if from_json(value) != kind:
        raise ValueError(f"expected a number, a plain array or a tuple of them, found {kind}")
    return value


def from_json(value: Any) -> Any:
    """The type that `to_json` was given; None for a name that is no type's."""
    if isinstance(value, dict):
        return types.BaseTuple.from_types([from_json(each) for each in value["tuple"]])
    if isinstance(value, list):
        dtype, ndim, layout, readonly, aligned = value
        return types.Array(from_json(dtype), ndim, layout, readonly=readonly, aligned=aligned)
    return types.boolean if value == "bool" else getattr(types, value, None)


def main() -> None:
    """Compile until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal: the other one ends us
    with suppress(OSError):  # only Linux has it; where memory is short, this process goes, and not the other
        Path("/proc/self/oom_score_adj").write_text("1000")
    gc.disable()  # a tenth of the time; Numba leaves little garbage, and this process ends soon
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    while True:
        module, name, lanes, signatures = json.loads(lines.get())
        with suppress(Exception):  # the other process compiles it again, and says why that fails
            kernel = find_kernel(import_module(module), name, lanes)
            for signature in signatures:
                kernel.compile(tuple(map(from_json, signature)))
        print("done", flush=True)


def _read(lines: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # also in the middle of a kernel
