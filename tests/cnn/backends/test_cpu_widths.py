"""The width of vectors: how it is chosen, and that one source gives a kernel of each width.

`test_cpu_threads.py` shows that results have the same bits at either width.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from cnn.backends.cpu import CpuBackend, processor
from cnn.backends.cpu.simd import full_like, inner, pointer, store
from cnn.backends.cpu.team import kernel
from cnn.backends.cpu.widths import LANES, NARROW, WIDE, ByLanes, lanes_for
from cnn.errors import DeviceError
from logpose.common import notices

DOUBLED = ByLanes(lambda lanes: 2 * lanes)


@inner
def _fill(dst, number):  # type: ignore[no-untyped-def]
    """The first vector of dst = number."""
    store(dst, 0, full_like(dst, number))


@kernel
def _fill_and_count(t, threads, number, dst, counts):  # type: ignore[no-untyped-def]
    """A kernel that shows its width: by a vector, by LANES, and by a name that depends on it."""
    _fill(pointer(dst, 0), number)
    counts[0], counts[1] = LANES, DOUBLED


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LOGPOSE_LANES", raising=False)
    processor.lanes.cache_clear()
    yield
    processor.lanes.cache_clear()


def on_processor(name: str, *features: str) -> int:
    """The width that is chosen on the processor that LLVM calls `name`."""
    processor.lanes.cache_clear()
    with (
        patch.object(processor.llvmlite.binding, "get_host_cpu_name", lambda: name),
        patch.object(processor.llvmlite.binding, "get_host_cpu_features", lambda: dict.fromkeys(features, True)),
    ):
        return processor.lanes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_source_gives_a_kernel_of_each_width(dtype: type) -> None:
    for lanes in (NARROW, WIDE):
        dst, counts = np.zeros(40, dtype), np.zeros(2, np.int64)
        _fill_and_count[lanes](0, 1, 7, dst, counts)
        assert (dst == 7).sum() == lanes and dst[0] == 7 and counts.tolist() == [lanes, 2 * lanes]
    assert _fill_and_count[WIDE] is _fill_and_count[WIDE] is not _fill_and_count[NARROW]


def test_kernel_without_a_width_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"kernel\[8\]"):
        _fill_and_count(0, 1, 7, np.zeros(40), np.zeros(2, np.int64))


def test_each_width_is_cached_for_itself(tmp_path: Path) -> None:
    """A process that uses another width than the last one must not load its kernels."""
    script = "from tests.cnn.backends.test_cpu_widths import print_hits; print_hits(int(__import__('sys').argv[1]))"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    found = []
    for lanes in (16, 8, 16):
        command = [sys.executable, "-c", script, str(lanes)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        found.append(done.stdout.split())
    assert found == [["16", "0"], ["8", "0"], ["16", "1"]]


def print_hits(lanes: int) -> None:
    """Print how many numbers the kernel writes at this width, and whether it came from the cache."""
    dst = np.zeros(40, np.float32)
    _fill_and_count[lanes](0, 1, 7, dst, np.zeros(2, np.int64))
    print((dst == 7).sum(), sum(_fill_and_count[lanes].stats.cache_hits.values()))


def test_width_depends_on_the_processor() -> None:
    for name in ("icelake-server", "sapphirerapids", "znver4", "znver5"):
        assert on_processor(name, "avx2", "avx512f") == WIDE, name
    for name in ("skylake-avx512", "cascadelake"):  # the clock drops
        assert on_processor(name, "avx2", "avx512f") == NARROW, name
    assert on_processor("znver3", "avx2") == NARROW and on_processor("apple-m1", "neon") == NARROW


@pytest.mark.parametrize("lanes", [8, 16])
def test_environment_decides(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPOSE_LANES", str(lanes))
    assert on_processor("znver5", "avx2", "avx512f") == lanes == on_processor("skylake-avx512", "avx512f")


@pytest.mark.parametrize("wrong", ["4", "16 ", "sixteen"])
def test_other_widths_are_an_error_before_any_kernel(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPOSE_LANES", wrong)
    with pytest.raises(DeviceError, match="expected LOGPOSE_LANES to be 8 or 16"):
        CpuBackend(1)


def test_wide_vectors_without_avx512_are_noted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setenv("LOGPOSE_LANES", "16")
    with caplog.at_level(logging.WARNING, "logpose"):
        assert on_processor("znver5", "avx2", "avx512f") == 16 and not caplog.messages
        assert on_processor("znver3", "avx2") == 16
    assert len(caplog.messages) == 1 and "no AVX-512" in caplog.messages[0]


def test_few_channels_take_narrow_vectors() -> None:
    with patch.object(processor, "lanes", lambda: WIDE):
        assert [lanes_for(channels) for channels in (1, 5, 8, 9, 24, 64)] == [8, 8, 8, 16, 16, 16]
    with patch.object(processor, "lanes", lambda: NARROW):
        assert lanes_for(64) == NARROW
