"""CPU convolutions against the reference: all algorithms and widths of vectors, many shapes, no write out of bounds."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.backends.base import HALVING, Window
from cnn.backends.cpu import convolution, direct, processor
from cnn.backends.cpu import workspace as cpu_workspace
from cnn.backends.cpu.team import get_team
from cnn.backends.cpu.widths import NARROW, WIDE
from cnn.backends.cpu.workspace import Workspace
from cnn.backends.reference import ReferenceBackend
from tests.cnn.test_gradients import thorough

REFERENCE = ReferenceBackend()
GUARD = 64  # elements before and after every array
CANARY = -12345.0


@contextmanager
def guarded_memory() -> Iterator[None]:
    """Surround every array that the convolution allocates with canary values, and check them at the end."""
    arrays: list[np.ndarray] = []

    def with_guards(shape: Any, dtype: Any) -> np.ndarray:
        whole = np.full(int(np.prod(shape)) + 2 * GUARD, CANARY, dtype)
        arrays.append(whole)
        return whole[GUARD:-GUARD].reshape(shape)

    with patch.object(convolution, "empty", with_guards), patch.object(cpu_workspace, "empty", with_guards):
        yield
    assert arrays
    for whole in arrays:
        assert (whole[:GUARD] == CANARY).all() and (whole[-GUARD:] == CANARY).all(), "written outside an array"


def workspace(threads: int) -> Workspace:
    return Workspace(get_team(threads))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    tolerance = 1e-4 if found.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


def draw_arrays(seed: int, dtype: type, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(dtype) for shape in shapes]


CHANNELS = st.sampled_from([1, 2, 3, 5, 8, 12, 16, 17, 33, 70])  # 70: a sum in two blocks
PADDING = st.integers(0, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tile", [0, 4, 2], ids=["direct", "winograd4", "winograd2"])
@thorough
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 13), st.integers(1, 13), CHANNELS),
    filters=CHANNELS, padding=st.tuples(PADDING, PADDING, PADDING, PADDING), threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_3x3_matches_the_reference(
    tile: int, dtype: type, shape: tuple, filters: int, padding: tuple, threads: int, seed: int
) -> None:
    window = Window((3, 3), (1, 1), *padding)
    if min(window.out_size(*shape[1:3])) < 1:
        return
    with patch.object(convolution, "choose_tile", lambda *args, **kwargs: tile):
        check_all(window, shape, filters, dtype, threads, seed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@thorough
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 17), st.integers(1, 17), CHANNELS), filters=CHANNELS,
    size=st.tuples(st.integers(1, 7), st.integers(1, 5)), stride=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    padding=st.tuples(PADDING, PADDING, PADDING, PADDING), threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_window_matches_the_reference(
    dtype: type, shape: tuple, filters: int, size: tuple, stride: tuple, padding: tuple, threads: int, seed: int
) -> None:
    window = Window(size, stride, *padding)
    if min(window.out_size(*shape[1:3])) >= 1:
        check_all(window, shape, filters, dtype, threads, seed)


def check_all(window: Window, shape: tuple, filters: int, dtype: type, threads: int, seed: int) -> None:
    """Compare outputs, packed ones with ReLU, their 2x2 maxima, and both gradients, at both widths of vectors."""
    out = (shape[0], *window.out_size(*shape[1:3]), filters)
    x, weight, bias, dy, d_weight = draw_arrays(
        seed, dtype, shape, (*window.size, shape[3], filters), (filters,), out, (*window.size, shape[3], filters)
    )
    expected_d_weight = d_weight.copy()
    expected_dx = REFERENCE.conv2d_backward(dy, x, weight, window, expected_d_weight, None, True)
    expected = REFERENCE.conv2d(x, weight, bias, window)
    for lanes in (NARROW, WIDE):
        with guarded_memory(), patch.object(processor, "lanes", lambda lanes=lanes: lanes):
            work = workspace(threads)
            y = convolution.forward(x, weight, bias, window, work)
            packed = convolution.pack(weight, bias, window, shape[1:], work)
            packed_y = convolution.forward_packed(x, packed, "relu", work)
            pools = packed.tile and min(out[1:3]) > 1
            pooled = convolution.forward_packed(x, packed, "relu", work, pool=2) if pools else None
            dx = convolution.input_gradient(dy, weight, window, shape, work)
            convolution.weight_gradient(dy, x, window, d_weight, work)
        assert_close(y, expected)
        assert_close(packed_y, np.maximum(expected, 0))
        if pooled is not None:
            np.testing.assert_array_equal(pooled, REFERENCE.max_pool(packed_y, HALVING)[0])
        assert_close(dx, expected_dx)
        assert_close(d_weight, expected_d_weight)


def test_block_sizes_match_the_reference() -> None:
    """Images larger than a block of work, and several in one; more threads than register tiles of filters."""
    for shape, stride in (((2, 40, 300, 24), 1), ((9, 4, 4, 40), 2), ((1, 64, 64, 9), 2)):
        check_all(Window((3, 3), (stride, stride), 1, 1, 1, 1), shape, 24, np.float32, 3, 0)
        check_all(Window((5, 5), (stride, stride), 2, 2, 2, 2), shape, 24, np.float32, 3, 0)


def test_large_weight_gradients_split_the_filters() -> None:
    """Threads then share a sum, each for its own filters; some work on parts of two."""
    for sums, tile in itertools.product((1, 2, 4), (0, 2, 4)):
        with (
            patch.object(convolution, "_sum_count", lambda *args, sums=sums: sums),
            patch.object(convolution, "choose_tile", lambda *args, tile=tile, **kwargs: tile),
        ):
            check_all(Window((3, 3), (1, 1), 1, 1, 1, 1), (3, 9, 10, 33), 56, np.float32, 3, 0)


def test_phases_cover_each_pixel_once() -> None:
    """Every pixel of dx that is in a window belongs to exactly one phase."""
    window, height, width = Window((3, 2), (2, 3), 1, 0, 1, 1), 7, 8
    seen = np.zeros((height, width), int)
    for phase in direct.phases(window, height, width):
        (row, column), (down, right) = phase.out_offset, phase.out_stride
        area = seen[row::down, column::right]
        assert area.shape == phase.out_size
        area += 1
    expected = np.zeros((height, width), int)
    x, weight = np.ones((1, height, width, 1)), np.ones((3, 2, 1, 1))
    dy = np.ones((1, *window.out_size(height, width), 1))
    dx = REFERENCE.conv2d_backward(dy, x, weight, window, np.zeros_like(weight), None, True)
    expected[dx[0, :, :, 0] != 0] = 1
    assert (seen >= expected).all() and seen.max() == 1


def test_choose_tile_needs_many_channels_and_stride_1() -> None:
    window = Window((3, 3), (1, 1), 1, 1, 1, 1)
    assert convolution.choose_tile(window, (64, 32, 32, 64), 64) == 4
    assert convolution.choose_tile(window, (64, 2, 2, 512), 512) == 2
    assert convolution.choose_tile(window, (64, 32, 32, 3), 32) == 0
    assert convolution.choose_tile(Window((3, 3), (2, 2), 1, 1, 1, 1), (64, 32, 32, 64), 64) == 0
    assert convolution.choose_tile(Window((5, 5), (1, 1), 2, 2, 2, 2), (64, 32, 32, 64), 64) == 0
