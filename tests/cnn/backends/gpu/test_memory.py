"""Uploads: the arrays arrive whole, whichever stream is ahead, and from several threads."""

import threading
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from cnn.backends.gpu.memory import Uploads, free_bytes

UPLOADS = 8  # each buffer is filled several times
SIZES = [[50] * UPLOADS, [20 * step + 1 for step in range(UPLOADS)], [50, 70, 50, 70, 30] * 2]


def test_arrays_of_any_type_and_shape(device: Any) -> None:
    given = [
        np.arange(7, dtype=np.int64), np.full((), 3.5), np.zeros((0, 4), np.float32),
        np.arange(30, dtype=np.uint8).reshape(2, 5, 3)[:, ::-1], np.array([True, False, True]),
    ]  # fmt: skip
    uploads = Uploads()
    found = uploads.upload(*given)
    for array, copy in zip(given, found, strict=True):
        assert copy.shape == array.shape and copy.dtype == array.dtype
        assert copy.data.ptr % 256 == 0  # as CuPy's own arrays, for vector loads
        np.testing.assert_array_equal(device.asnumpy(copy), array)


def test_none_and_device_arrays_are_passed_on(device: Any) -> None:
    own = device.asarray(np.arange(3))
    uploads = Uploads()
    found = uploads.upload(None, own, np.arange(4))
    assert found[0] is None and found[1] is own
    np.testing.assert_array_equal(device.asnumpy(found[2]), np.arange(4))
    assert uploads.upload() == [] and uploads.upload(None) == [None]
    assert Uploads().upload(np.empty((0, 3)))[0].shape == (0, 3)  # nothing but empty arrays, at first


def copies_of(device: Any, uploads: Uploads, sizes: list[int]) -> list[tuple[Any, np.ndarray]]:
    """Copies on the device of uploaded arrays, and what they should be. The host's array is changed meanwhile."""
    host, copies = np.zeros(max(sizes), np.int64), []
    for step, size in enumerate(sizes):
        host[:] = step + np.arange(len(host))
        expected = np.append(host[:size], [step] * 3)  # (size + 3,)
        array, numbers = uploads.upload(host[:size], np.full(3, step))
        host[:] = -1
        copy = device.empty(len(expected), np.int64)  # (size + 3,)
        copy[:size] = array  # the stand-in puts this off, other than arithmetic
        copy[size:] = numbers
        copies.append((copy, expected))
    return copies


def check(device: Any, copies: list[tuple[Any, np.ndarray]]) -> None:
    for found, expected in copies:
        np.testing.assert_array_equal(device.asnumpy(found), expected)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("own_stream", [False, True])
def test_buffers_are_filled_again_only_when_they_are_done_with(
    device: Any, stream_schedule: str, sizes: list[int], own_stream: bool
) -> None:
    uploads = Uploads()
    with device.cuda.Stream(non_blocking=True) if own_stream else nullcontext():
        check(device, copies_of(device, uploads, sizes))


def test_new_buffers_wait_for_work_on_the_memory_that_they_get(device: Any, stream_schedule: str) -> None:
    uploads = Uploads()
    for _ in range(3):
        array = device.asarray(np.arange(1000))
        copy = device.empty(1000, np.int64)  # (1000,)
        copy[...] = array
        del array  # CuPy gives out the same memory again
        uploads.upload(np.full(1000, -1))
        np.testing.assert_array_equal(device.asnumpy(copy), np.arange(1000))


def test_threads_have_buffers_of_their_own(device: Any) -> None:
    """Each takes its arrays while the other threads upload theirs."""
    uploads, barrier, wrong = Uploads(), threading.Barrier(3, timeout=5), []

    def work(seed: int) -> None:
        for step in range(UPLOADS):
            array = uploads.upload(np.full(100, 10 * step + seed))[0]
            barrier.wait()
            if device.asnumpy(array).min() != 10 * step + seed or device.asnumpy(array).max() != 10 * step + seed:
                wrong.append((step, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_free_bytes_count_what_cupy_keeps(device: Any) -> None:
    before = free_bytes()
    array = device.empty(1 << 20, np.uint8)
    assert free_bytes() <= before - array.nbytes
    del array
    assert free_bytes() == before
