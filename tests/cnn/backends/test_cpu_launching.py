"""Launching kernels on the threads of a team: every slice is computed once, whether the threads spin or sleep."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest

from cnn.backends.cpu import launching
from cnn.backends.cpu.team import Team, kernel
from cnn.backends.cpu.widths import NARROW


@kernel
def _count(t, threads, counts, spins):  # type: ignore[no-untyped-def]
    """Count a computed slice in counts (T, 8), after work that takes as long as `spins` (T,) says."""
    number = 0.0
    for _ in range(spins[t]):
        number = number * 0.5 + 1.0
    counts[t, 0] += 1 + int(number * 0)


@kernel
def _sum_arguments(t, threads, pair, flag, number, single, matrix, out):  # type: ignore[no-untyped-def]
    """out[t] = the sum of all arguments."""
    out[t] = pair[0] + pair[1] + flag + number + single.sum() + matrix[1, 2]


@kernel
def _take_much(t, threads, a, b):  # type: ignore[no-untyped-def]
    a[t] = b[0]


@pytest.fixture(params=["spin", "sleep", "either"])
def pauses(request: pytest.FixtureRequest) -> Iterator[None]:
    """How long threads look for news before they fall asleep: always long enough, never, or now and then."""
    count = {"spin": 10**9, "sleep": 0, "either": 30}[request.param]
    with patch.object(launching, "_pauses", lambda: count), patch.object(launching, "available_cpus", lambda: 8):
        yield


@pytest.mark.parametrize("threads", [2, 3])
def test_every_slice_is_computed_once(pauses: None, threads: int) -> None:
    """In thousands of launches of any length, of compiled kernels and of Python's functions in any order."""
    team, rng = Team(threads), np.random.default_rng(threads)
    counts = np.zeros((threads, 8), np.int64)  # (T, 8): a cache line each
    launches = 300 if threads > (os.cpu_count() or 1) else 3000

    def count(t: int, threads: int) -> None:
        counts[t, 0] += 1

    for launch in range(1, launches + 1):
        if launch % 50 == 0:
            team.run(count)
        else:
            team.run(_count[NARROW], counts, rng.integers(0, 2000, threads))
        assert (counts[:, 0] == launch).all()
    _release(team)


def test_callers_of_one_team_take_turns(pauses: None) -> None:
    team, launches = Team(2), 200
    counts = np.zeros((2, 8), np.int64)  # (T, 8)

    def call() -> None:
        for _ in range(launches):
            team.run(_count[NARROW], counts, np.zeros(2, np.int64))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert counts[:, 0].tolist() == [3 * launches] * 2
    _release(team)


def _release(team: Team) -> None:
    """Have the team's threads, which may look for news for hours, fall asleep."""
    assert team._board is not None
    team._board[launching._MAX_PATIENCE // 8] = 0
    team.run(lambda t, threads: None)


@pytest.mark.parametrize("threads", [1, 2])
def test_arguments_of_any_kind_reach_every_slice(threads: int) -> None:
    out, matrix = np.zeros(threads), np.arange(6.0).reshape(2, 3)
    for number in (1.5, 2.5):
        Team(threads).run(_sum_arguments[NARROW], (1, 2), True, number, np.float32([8, 16]), matrix, out)
        assert (out == 1 + 2 + 1 + number + 24 + 5).all()


def test_too_many_arguments_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected a kernel's arguments in 2048 bytes"):
        _take_much[NARROW](0, 1, np.zeros(2), tuple(range(300)))


def test_threads_beyond_the_processors_do_not_spin() -> None:
    with patch.object(launching, "available_cpus", lambda: 2):
        assert launching.make_board(2)[launching._MAX_PATIENCE // 8] > 0
        assert launching.make_board(3)[launching._MAX_PATIENCE // 8] == 0


def test_kernel_keeps_its_name_and_place() -> None:
    found = _count[NARROW].py_func
    assert (found.__module__, found.__qualname__, found.lanes) == (__name__, "_count", NARROW)
    assert found.__code__.co_filename == __file__ and "Count a computed slice" in found.__doc__


def test_process_ends_while_threads_wait() -> None:
    """Spinning or asleep, and right after a launch."""
    script = "import numpy as np; from cnn.backends.cpu import CpuBackend; x = np.ones((64, 32, 32, 8), np.float32)"
    script += "; b = CpuBackend(2); assert (b.add(x, x) == 2).all(){}"
    for wait in ("", "; import time; time.sleep(0.3)"):
        done = subprocess.run(
            [sys.executable, "-c", script.format(wait)], capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert not done.returncode and not done.stderr, done.stderr


def test_patience_halves_when_it_is_not_rewarded_and_grows_when_it_is() -> None:
    """A team that rests longer than its threads look for news; then one launch follows the other."""
    team, counts = Team(2), np.zeros((2, 8), np.int64)  # (T, 8)
    with patch.object(launching, "available_cpus", lambda: 8):
        team.run(_count[NARROW], counts, np.zeros(2, np.int64))
    assert team._board is not None
    of_worker = (launching._WORKERS + launching._WORKER_BYTES + launching._PATIENCE) // 8
    longest = int(team._board[launching._MAX_PATIENCE // 8])
    for _ in range(12):
        time.sleep(20 * launching._SPIN_SECONDS)
        team.run(_count[NARROW], counts, np.zeros(2, np.int64))
    least = longest // launching._MIN_PATIENCE
    assert least <= team._board[of_worker] < longest / 4
    team._board[of_worker] = 10**9
    team.run(_count[NARROW], counts, np.zeros(2, np.int64))
    team.run(_count[NARROW], counts, np.zeros(2, np.int64))
    time.sleep(0.05)
    assert team._board[of_worker] <= longest
