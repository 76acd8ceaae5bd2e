"""Kernels compiled by other processes: into the cache, never twice, and never in the way of a job."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
from numba import types

from cnn.backends.cpu import compiling, winograd
from cnn.backends.cpu.compile_worker import from_json, to_json

Pair = namedtuple("Pair", "a b")
ROOT = Path(__file__).resolve().parents[3]

# Prepares four kernels and runs them. Says what progress said, how many were compiled here, how many processes were
# started, and whether the results are right. The first argument is run before.
SCRIPT = """
import sys
import numpy as np
from numba.core import event
from cnn.backends.base import Window
from cnn.backends.cpu import CpuBackend, compiling, elementwise, optimizers, pooling

class Compiled(event.Listener):
    kernels = set()
    def on_start(self, event):
        self.kernels.add(event.data["dispatcher"])
    def on_end(self, event):
        pass

event.register("numba:compile", Compiled())
start, started = compiling.start_processes, []
compiling.start_processes = lambda count: started.append(start(count)) or started[-1]
exec(sys.argv[1])
backend, x, said = CpuBackend(2), np.full((2, 4, 4, 8), 2.0, np.float32), []

def work():
    y, argmax = backend.max_pool(backend.add(x, x), pool)
    return y, backend.max_pool_backward(y, argmax, x.shape, pool), backend.squared_norm(x.reshape(-1))

pool = Window((2, 2), (2, 2))
backend.prepare(work, lambda done, total: said.append((done, total)))
both = elementwise._add, pooling._max_pool_2x2, pooling._max_pool_2x2_backward, optimizers._squared_norm
kernels = {kernel[lanes] for kernel in both for lanes in (8, 16)}
here = len(Compiled.kernels & kernels)
y, dx, square = work()
assert (y == 4).all() and dx.sum() == 4 * 4 * 2 * 8 * 2 / 2 and square == 4 * x.size, (y, dx.sum(), square)
print(said, here, len(Compiled.kernels & kernels) - here, sum(map(len, started)))
"""


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(cache)}


def start(cache: Path, first: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, first], env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def outcome(process: "subprocess.Popen[str]") -> tuple[list[tuple[int, int]], int, int, int]:
    """Progress, kernels compiled while preparing and while working, and processes started."""
    out, said = process.communicate()
    assert not process.returncode and "Error" not in said, said
    progress, *counts = out.rpartition("]")[0] + "]", *out.rpartition("]")[2].split()
    before, after, started = map(int, counts)
    return [tuple(pair) for pair in json.loads(progress.replace("(", "[").replace(")", "]"))], before, after, started


NO_CACHE = """
from numba.core.caching import NullCache
for kernel in (elementwise._add, pooling._max_pool_2x2, pooling._max_pool_2x2_backward, optimizers._squared_norm):
    for lanes in (8, 16):
        kernel[lanes]._cache = NullCache()
"""
ALL = [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_other_processes_compile_once(tmp_path: Path) -> None:
    assert outcome(start(tmp_path)) == (ALL, 0, 0, 2)
    assert len(list(tmp_path.rglob("*.nbc"))) == 4
    assert outcome(start(tmp_path)) == ([], 0, 0, 0), "all are in the cache"


@pytest.mark.parametrize(
    "trouble",
    [
        "sys.executable = '/nowhere/python'",
        "compiling._START = 'raise SystemExit'",
        "compiling._PATIENCE, compiling._START = 0.3, 'import time; time.sleep(60)'",
        "compiling.sendable = lambda kernels: {}",
        NO_CACHE,
    ],
)
def test_this_process_compiles_what_others_do_not(tmp_path: Path, trouble: str) -> None:
    """None can be started, they die or hang, nothing can be kept, or an argument cannot be described."""
    progress, before, after, _ = outcome(start(tmp_path, trouble))
    assert progress[0] == (0, 4) and progress[-1] == (4, 4)
    assert (before, after) == (4, 0)


def test_of_two_processes_one_compiles(tmp_path: Path) -> None:
    both = [start(tmp_path), start(tmp_path)]
    outcomes = [outcome(process) for process in both]
    assert sorted(started for *_, started in outcomes) == [0, 2]
    assert [here + later for _, here, later, _ in outcomes] == [0, 0]


def test_worker_ends_in_the_middle_of_a_kernel(tmp_path: Path) -> None:
    signature = [to_json(kind) for kind in kernel_types()]
    request = json.dumps(["cnn.backends.cpu.winograd", "forward", 8, [signature]]) + "\n"
    command = [sys.executable, "-P", "-c", compiling._START, json.dumps(sys.path)]
    done = subprocess.run(command, input=request, env=environment(tmp_path), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert not list(tmp_path.rglob("winograd.forward*"))


def kernel_types() -> tuple[Any, ...]:
    """The argument types of `winograd.forward`."""
    x, flat = np.zeros((1, 8, 8, 8), np.float32), np.zeros(8, np.float32)
    arguments = (0, 1, 4, x, flat, flat, False, x, 1, 1, 48, x[0, 0])
    return tuple(map(winograd.forward[8].typeof_pyval, arguments))


def test_all_processes_are_ended_by_an_error() -> None:
    """Ctrl-C, for example, while the progress is shown."""
    processes = compiling.start_processes(2)
    kernel, signature = winograd.forward[8], kernel_types()

    def interrupted(left: int) -> None:
        raise KeyboardInterrupt

    for process in processes:
        process._answers.put((process, True))  # as if something were compiled
    with pytest.raises(KeyboardInterrupt):
        compiling.compile_in(processes, {kernel: [signature]}, interrupted)
    assert all(process._process.returncode is not None for process in processes)


def test_types_are_written_as_json() -> None:
    array, readonly = np.zeros((2, 3), np.float32), np.zeros(3, np.uint8)
    readonly.flags.writeable = False
    values = (1, 1.5, True, np.float32(1), np.int64(1), array, array[:, :2], array.T, readonly, (1, 2), (1, 2.0))
    for kind in (*map(numba.typeof, values), *kernel_types()):
        assert from_json(json.loads(json.dumps(to_json(kind)))) == kind


OTHERS = (np.zeros(2, "M8[s]"), Pair(1, 2))


@pytest.mark.parametrize("kind", [types.ListType(types.int64), *map(numba.typeof, OTHERS)])
def test_other_types_are_not(kind: Any) -> None:
    with pytest.raises(ValueError):
        to_json(kind)


def test_only_our_own_kernels_are_sent() -> None:
    """Another's module, such as a script without `if __name__`, must not be imported by another process."""
    own, signature = winograd.forward[16], kernel_types()
    foreign = Kernel(__name__, "foreign")
    globals()["foreign"] = foreign
    hidden = Kernel("", "", own.py_func)  # its name is another kernel's
    assert list(compiling.sendable({own: [signature]})) == [own]
    for other in (foreign, hidden):
        assert compiling.sendable({other: [signature]}) == {}


class Kernel:
    """A stand-in for a kernel."""

    def __init__(self, module: str, name: str, function: Any = None) -> None:
        self.py_func = function or SimpleNamespace(__module__=module, __qualname__=name)


def test_process_goes_on_with_the_same_module() -> None:
    a, b, other_b = Kernel("a", "1"), Kernel("b", "1"), Kernel("b", "2")
    left: dict[Any, list[Any]] = {a: [], b: [], other_b: []}
    assert compiling.choose(left, "a", {"b"}) is a
    assert compiling.choose(left, "", set()) is b, "of the module with most left"
    assert compiling.choose(left, "", {"b"}) is a, "the other process knows the inner functions of b"
    assert compiling.choose({a: []}, "b", {"a"}) is a, "better twice than late"
