"""Uploads: the arrays arrive whole, whatever the streams do first and whoever uploads at the same time."""

import threading
from typing import Any

import numpy as np
import pytest

from cnn.backends.gpu.memory import Uploads, free_bytes

cupy = pytest.importorskip("cupy")


def test_arrays_of_any_type_and_shape() -> None:
    given = [
        np.arange(7, dtype=np.int64), np.float64(3.5) * np.ones(()), np.zeros((0, 4), np.float32),
        np.arange(30, dtype=np.uint8).reshape(2, 5, 3)[:, ::-1], np.array([True, False, True]),
    ]  # fmt: skip
    found = Uploads().upload(*given)
    for array, copy in zip(given, found, strict=True):
        assert copy.shape == array.shape and copy.dtype == array.dtype
        np.testing.assert_array_equal(cupy.asnumpy(copy), array)


def test_none_and_device_arrays_are_passed_on() -> None:
    own = cupy.asarray(np.arange(3))
    found = Uploads().upload(None, own, np.arange(4))
    assert found[0] is None and found[1] is own
    np.testing.assert_array_equal(cupy.asnumpy(found[2]), np.arange(4))


def sums_of(uploads: Uploads, seed: int, count: int) -> tuple[list[Any], list[int]]:
    """Sums of arrays that are uploaded one after the other, on the device and as expected; the host's is reused."""
    generator = np.random.default_rng(seed)
    host = np.empty(4000, np.int64)
    found, expected = [], []
    for step in range(count):
        size = int(generator.integers(1, 400 * (1 + step)))  # most sizes are larger than all before: new buffers
        host[:size] = generator.integers(0, 1000, size)
        copy, other = uploads.upload(host[:size], np.full(3, step))
        expected.append(int(host[:size].sum()) + step)
        host[:] = -1
        found.append(copy.sum() + other[:1].sum())
    return found, expected


def test_buffers_are_reused_only_when_they_are_done_with() -> None:
    uploads = Uploads()
    for seed in range(3):
        found, expected = sums_of(uploads, seed, 10)
        assert [int(each) for each in found] == expected


def test_threads_have_buffers_of_their_own() -> None:
    uploads, wrong = Uploads(), []

    def work(seed: int) -> None:
        found, expected = sums_of(uploads, seed, 10)
        if [int(each) for each in found] != expected:
            wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_free_bytes_is_at_least_what_is_given_back() -> None:
    before = free_bytes()
    array = cupy.empty(1 << 20, np.uint8)
    assert free_bytes() <= before - array.nbytes
    del array
    assert free_bytes() == before
