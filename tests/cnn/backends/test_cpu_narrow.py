"""Convolutions with pixels in the lanes: the bits of `direct.py` at any width, on any threads; no stray reads."""

import ctypes
import math
import mmap
import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cnn.backends.base import Window
from cnn.backends.cpu import CpuBackend, convolution, processor
from cnn.backends.cpu.tiles import MAX_FILTERS
from cnn.backends.cpu.widths import NARROW, WIDE
from cnn.backends.reference import ReferenceBackend
from cnn.layers.activations import ACTIVATIONS
from tests.cnn.backends.test_cpu_convolution import assert_close, draw_arrays, guarded_memory, workspace
from tests.cnn.test_gradients import thorough

REFERENCE = ReferenceBackend()
COUNTS = (1, 3, 5, 6, 7)  # of filters: each kind of register tile, and whole and partial groups of channels
WIDE_COUNTS = (3, 5)  # of these, for which vectors of 16 are compiled too, which takes seconds each
PADDING = st.integers(0, 3)


def forced(narrow: bool) -> Any:
    """Every convolution is narrow, or none is."""

    def choose(window: Window, width: int, channels: int, filters: int) -> bool:
        return narrow and filters <= MAX_FILTERS

    return patch.multiple(convolution, is_narrow=choose, is_narrow_gradient=choose)


def compute_all(arrays: list[np.ndarray], window: Window, threads: int, lanes: int) -> dict[str, np.ndarray]:
    """The outputs of x, weight, bias and dy, with and without ReLU, and both gradients, with canaries around all."""
    x, weight, bias, dy = arrays
    d_weight = np.full_like(weight, np.nan)
    with guarded_memory(), patch.object(processor, "lanes", lambda: lanes):
        work = workspace(threads)
        packed = convolution.pack(weight, bias, window, x.shape[1:], work)
        convolution.weight_gradient(dy, x, window, d_weight, work)
        return {
            "y": convolution.forward(x, weight, bias, window, work),
            "without bias": convolution.forward(x, weight, None, window, work),
            "relu": convolution.forward_packed(x, packed, "relu", work),
            "dx": convolution.input_gradient(dy, weight, window, x.shape, work),
            "d_weight": d_weight,
        }


@pytest.mark.parametrize(("dtype", "counts"), [(np.float32, COUNTS), (np.float64, (5,))], ids=["32", "64"])
@thorough
@example(shape=(2, 40, 70, 5), filters=2, size=(3, 3), padding=(0, 0, 0, 0), threads=2, block=1 << 13, seed=0)
@example(shape=(1, 3, 200, 16), filters=3, size=(1, 3), padding=(0, 0, 1, 1), threads=1, block=1 << 13, seed=0)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 17), st.integers(1, 70), st.integers(1, 16)),
    filters=st.integers(1, MAX_FILTERS),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)), padding=st.tuples(PADDING, PADDING, PADDING, PADDING),
    threads=st.integers(1, 3), block=st.sampled_from([1, 1 << 13, 1 << 17]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_window_at_stride_1(
    dtype: type, counts: Sequence[int], shape: tuple, filters: int, size: tuple, padding: tuple, threads: int,
    block: int, seed: int,
) -> None:
    """Against the reference, and `direct.py`: the same bits, but for the weights' gradient."""
    filters = counts[filters % len(counts)]  # each number is compiled for
    window = Window(size, (1, 1), *padding)
    out_size = window.out_size(*shape[1:3])
    if min(out_size) < 1:
        return
    arrays = draw_arrays(seed, dtype, shape, (*size, shape[3], filters), (filters,), (shape[0], *out_size, filters))
    x, weight, bias, dy = arrays
    with patch.object(convolution, "choose_tile", lambda *args, **kwargs: 0):
        with forced(narrow=False):
            direct = compute_all(arrays, window, 1, NARROW)
        with (
            forced(narrow=True), patch.object(convolution, "_BLOCK_BYTES", block),
            patch.object(convolution, "_MIN_PORTION_PIXELS", 10),
        ):  # fmt: skip
            found = compute_all(arrays, window, 1, NARROW)
            lanes = WIDE if filters in WIDE_COUNTS and dtype == np.float32 else NARROW
            others = [compute_all(arrays, window, threads, lanes), compute_all(arrays, window, 3, NARROW)]
    expected_d_weight = np.empty_like(weight)
    REFERENCE.conv2d_backward(dy, x, weight, window, expected_d_weight, None, True)
    assert_close(found["y"], REFERENCE.conv2d(x, weight, bias, window))
    assert_close(found["d_weight"], expected_d_weight)
    for name, values in found.items():
        assert name == "d_weight" or values.tobytes() == direct[name].tobytes(), f"{name} differs from direct.py's"
        for other in others:
            assert values.tobytes() == other[name].tobytes(), f"{name} depends on the threads or the width"


@pytest.mark.parametrize("kind", ["", *ACTIVATIONS])
@pytest.mark.parametrize("lanes", [NARROW, WIDE])
def test_activations_in_inference_have_the_bits_of_a_pass_of_their_own(kind: str, lanes: int) -> None:
    backend, window = CpuBackend(2), Window((3, 3), (1, 1), 1, 1, 0, 1)
    x, weight, bias = draw_arrays(0, np.float32, (3, 9, 37, 3), (3, 3, 3, 5), (5,))
    with forced(narrow=True), patch.object(processor, "lanes", lambda: lanes):
        packed = backend.pack_conv2d(weight, bias, window, x.shape[1:])
        found, plain = backend.conv2d_packed(x, packed, kind), backend.conv2d_packed(x, packed, "")
    assert packed.narrow
    assert found.tobytes() == (backend.activate(kind, plain) if kind else plain).tobytes()


def test_weight_gradients_of_large_images_are_as_accurate_as_before() -> None:
    """Sums over 80,000 pixels of one sign."""
    window, backend = Window((3, 3), (1, 1)), CpuBackend(1)
    x, dy = (np.abs(a) for a in draw_arrays(0, np.float32, (2, 202, 202, 3), (2, 200, 200, 5)))
    weight, errors = np.zeros((3, 3, 3, 5), np.float32), []
    expected = np.zeros(weight.shape)
    REFERENCE.conv2d_backward(dy.astype(float), x.astype(float), weight.astype(float), window, expected, None, False)
    for narrow in (True, False):
        with forced(narrow):
            d_weight = np.empty_like(weight)
            backend.conv2d_backward(dy, x, weight, window, d_weight, None, False)
            errors.append(np.abs(d_weight - expected).max() / np.abs(expected).max())
    assert errors[0] <= errors[1] and errors[0] < 2e-6


@pytest.mark.skipif(sys.platform != "linux", reason="protects memory with mprotect")
@pytest.mark.parametrize(
    ("filters", "lanes"), [(count, NARROW) for count in COUNTS] + [(count, WIDE) for count in WIDE_COUNTS]
)
def test_no_access_beyond_an_array(filters: int, lanes: int) -> None:
    """Arrays end where a protected page begins: to read it would end the process."""
    for channels, width in ((filters, 16), (filters, 21), (1, 8), (6, 50), (16, 9)):
        window = Window((2, 3), (1, 1), 1, 0, 1, 1)
        shapes = (2, 4, width, channels), (2, 3, channels, filters), (filters,), (2, 4, width, filters)
        x, weight, bias, dy = (before_protected_page(a) for a in draw_arrays(0, np.float32, *shapes))
        d_weight = before_protected_page(np.zeros_like(weight))
        allocated = patch.object(convolution, "empty", lambda *kind: before_protected_page(np.zeros(*kind)))
        with forced(narrow=True), patch.object(processor, "lanes", lambda: lanes), allocated:
            work = workspace(2)
            y = convolution.forward(x, weight, bias, window, work)
            convolution.weight_gradient(dy, x, window, d_weight, work)
            convolution.input_gradient(dy, weight, window, x.shape, work)
        assert_close(y, REFERENCE.conv2d(x, weight, bias, window))


def before_protected_page(values: np.ndarray) -> np.ndarray:
    """A copy of `values` at the end of a page, which the next one, of no access, follows."""
    pages = math.ceil(values.nbytes / mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(memory.ctypes.data + pages), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copied = memory[pages - values.nbytes : pages].view(values.dtype).reshape(values.shape)
    copied[...] = values
    return copied


def test_few_filters_and_long_rows_are_narrow() -> None:
    window = Window((3, 3), (1, 1))
    for narrow in (convolution.is_narrow, convolution.is_narrow_gradient):
        assert narrow(window, 254, 3, 5) and narrow(window, 254, 5, 5)
        assert not narrow(window, 254, 5, 8), "a full vector of filters"
        assert not narrow(window, 5, 5, 5), "rows shorter than a vector"
        assert not narrow(window, 254, 64, 5), "many channels"
        assert not narrow(Window((3, 3), (2, 2)), 254, 3, 5), "stride"
    assert convolution.is_narrow(window, 20, 5, 5) and not convolution.is_narrow_gradient(window, 20, 5, 5)
    assert not convolution.is_narrow_gradient(Window((1, 1), (1, 1)), 254, 5, 5), "little arithmetic"
