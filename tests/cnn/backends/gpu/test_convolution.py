"""The convolution's kernels against the reference in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

from cnn.backends.base import Array, Window
from cnn.backends.gpu import convolution
from cnn.backends.gpu.convolution import TILES, Tile, choose_splits, choose_tile
from cnn.backends.reference import ReferenceBackend
from tests.cnn.backends.gpu.storage import WIDE, error, random, to_device, to_host

REFERENCE = ReferenceBackend()
# By precision: storage type, math, and the largest relative error.
PRECISIONS = {
    "float64": ("float64", "PLAIN", 1e-12), "float32": ("float32", "PLAIN", 1e-5),
    "tf32": ("float32", "TF32", 5e-4), "bf16": ("bf16", "BF16", 2.5e-3),
}  # fmt: skip


class Case(NamedTuple):
    """Images (N, H, W, C), the number of filters, and their window."""

    shape: tuple[int, int, int, int]
    filters: int
    window: Window

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.shape[0], *self.window.out_size(*self.shape[1:3]), self.filters)


SAME = Window((3, 3), (1, 1), 1, 1, 1, 1)
# 16-byte copies: several tiles of rows; several of columns, unequal strides and paddings; phases without taps; a window
# larger than the image.
ALIGNED = (
    Case((2, 9, 11, 16), 24, SAME),
    Case((2, 9, 8, 24), 136, Window((5, 3), (2, 3), 2, 1, 0, 1)),
    Case((3, 6, 5, 64), 72, Window((1, 1), (2, 2))),
    Case((2, 3, 4, 8), 8, Window((5, 5), (1, 1), 2, 2, 2, 2)),
)
# Single elements.
NARROW = (
    Case((2, 9, 8, 3), 10, SAME),
    Case((2, 5, 6, 5), 130, Window((2, 3), (1, 2), 1, 0, 0, 2)),
    Case((3, 4, 5, 1), 8, Window((2, 2), (3, 3))),
    Case((2, 5, 4, 130), 3, Window((3, 1), (1, 2), 1, 1, 0, 0)),
)
LARGE = Case((2, 13, 11, 24), 136, SAME)  # more than one of every tile


class Layer:
    """A convolution's arrays on the device, at any offset of 16 bytes, and in float64 on the host."""

    def __init__(self, precision: str, case: Case, seed: int = 0) -> None:
        kind, self.math, self.tolerance = PRECISIONS[precision]
        generator = np.random.default_rng(seed)
        channels, (self.case, self.window) = case.shape[3], (case, case.window)
        self.weight_shape = (*case.window.size, channels, case.filters)
        self.x = random(generator, case.shape, kind)  # (N, H, W, C)
        self.weight = _misaligned(random(generator, self.weight_shape, kind))  # (KH, KW, C, K)
        self.dy = random(generator, case.out_shape, kind)  # (N, OH, OW, K)
        self.bias = _misaligned(to_device(generator.normal(size=case.filters), np.dtype(WIDE[kind]).name))  # (K,)
        self.wide = np.dtype(WIDE[kind]).name

    def forward(self, activation: str = "", statistics: bool = False) -> tuple[Array, Any]:
        return convolution.forward(self.x, self.weight, self.bias, self.window, self.math, activation, statistics)

    def input_gradient(self) -> Array:
        return convolution.input_gradient(self.dy, self.weight, self.window, self.case.shape, self.math)

    def weight_gradient(self) -> Array:
        d_weight = _misaligned(to_device(np.full(self.weight_shape, np.nan), self.wide))  # (KH, KW, C, K)
        convolution.weight_gradient(self.dy, self.x, self.window, self.math, d_weight)
        return d_weight

    def expected(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """y, dx and d_weight."""
        x, weight, dy, bias = (to_host(each) for each in (self.x, self.weight, self.dy, self.bias))
        d_weight = np.empty(weight.shape)  # (KH, KW, C, K)
        dx = REFERENCE.conv2d_backward(dy, x, weight, self.window, d_weight, None, True)  # (N, H, W, C)
        assert dx is not None
        return REFERENCE.conv2d(x, weight, bias, self.window), dx, d_weight


def _misaligned(array: Array) -> Array:
    """A copy that begins one element after a multiple of 16 bytes, as in a vector of all parameters."""
    import cupy

    room = cupy.empty(array.size + 1, array.dtype)  # (elements + 1,)
    view = room[1:].reshape(array.shape)  # shape of array
    view[...] = array
    return view


def _bits(array: Array) -> bytes:
    return bytes(array.get().tobytes())


@contextmanager
def _only(monkeypatch: pytest.MonkeyPatch, tile: Tile) -> Iterator[None]:
    """No tile but this."""
    with monkeypatch.context() as patch:
        patch.setattr(convolution, "TILES", (tile,))
        choose_tile.cache_clear()
        yield
    choose_tile.cache_clear()


def _check_all_passes(layer: Layer) -> None:
    y, dx, d_weight = layer.expected()
    assert error(layer.forward()[0], y) < layer.tolerance
    assert error(layer.input_gradient(), dx) < layer.tolerance
    assert error(layer.weight_gradient(), d_weight) < layer.tolerance


@pytest.mark.parametrize("case", [*ALIGNED, *NARROW], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_passes_equal_the_reference(device: Any, precision: str, case: Case) -> None:
    _check_all_passes(Layer(precision, case))


@pytest.mark.parametrize(("precision", "tile"), [
    ("bf16", TILES[0]), ("bf16", TILES[1]), ("tf32", TILES[0]),
], ids=str)  # fmt: skip
def test_tiles_do_not_change_bits(device: Any, monkeypatch: pytest.MonkeyPatch, precision: str, tile: Tile) -> None:
    layer = Layer(precision, LARGE)
    with _only(monkeypatch, TILES[-1]):
        y, dx = layer.forward()[0], layer.input_gradient()  # (N, OH, OW, K), (N, H, W, C)
    with _only(monkeypatch, tile):
        _check_all_passes(layer)
        assert _bits(layer.forward()[0]) == _bits(y)
        assert _bits(layer.input_gradient()) == _bits(dx)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [ALIGNED[0], NARROW[0]], ids=("aligned", "narrow"))
def test_bits_do_not_depend_on_the_batch(
    device: Any, monkeypatch: pytest.MonkeyPatch, precision: str, case: Case
) -> None:
    layer = Layer(precision, case)
    both = layer.forward("silu")[0]  # (2, OH, OW, K)
    layer.x = layer.x[1:]
    assert _bits(layer.forward("silu")[0]) == _bits(both[1:])


@pytest.mark.parametrize(("precision", "tile"), [
    ("float64", TILES[-1]), ("tf32", TILES[0]), ("bf16", TILES[0]), ("bf16", TILES[1]),
])  # fmt: skip
def test_statistics_are_of_the_stored_output(
    device: Any, monkeypatch: pytest.MonkeyPatch, precision: str, tile: Tile
) -> None:
    layer = Layer(precision, LARGE)
    with _only(monkeypatch, tile):
        y, statistics = layer.forward(statistics=True)
    rows = to_host(y).reshape(-1, LARGE.filters)  # (M, K)
    partial = to_host(statistics.partial)  # (tiles, 2, K)
    assert len(partial) == -(-len(rows) // statistics.tile_rows)
    for number, (mean, squares) in enumerate(partial):
        own = rows[number * statistics.tile_rows :][: statistics.tile_rows]  # (R, K)
        tolerance = {"rtol": 1e-12 if precision == "float64" else 1e-4, "atol": 1e-4 * (precision != "float64")}
        np.testing.assert_allclose(mean, own.mean(axis=0), **tolerance)
        np.testing.assert_allclose(squares, own.var(axis=0) * len(own), **tolerance)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "silu", "gelu"])
@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_activation_is_that_of_the_output(device: Any, precision: str, activation: str) -> None:
    layer = Layer(precision, ALIGNED[0])
    expected = REFERENCE.activate(activation, layer.expected()[0])  # (N, OH, OW, K)
    assert error(layer.forward(activation)[0], expected) < layer.tolerance


@pytest.mark.parametrize("filters", [24, 10])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_input_with_padded_channels(device: Any, precision: str, filters: int) -> None:
    case = Case((2, 7, 9, 3), filters, Window((3, 2), (2, 1), 1, 1, 0, 1))
    layer = Layer(precision, case)
    padded = device.zeros((*case.shape[:3], 8 if precision == "bf16" else 4), layer.x.dtype)  # (N, H, W, P)
    padded[..., :3] = layer.x
    layer.x = padded[..., :3]  # (N, H, W, 3)
    y, _, d_weight = layer.expected()
    assert error(layer.forward()[0], y) < layer.tolerance
    assert error(layer.weight_gradient(), d_weight) < layer.tolerance


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_and_infinity_are_propagated(device: Any, precision: str, value: float) -> None:
    layer = Layer(precision, ALIGNED[0])
    layer.x[1, 4, 5, 6] = to_device(np.full((), value), PRECISIONS[precision][0])
    for bits in (0x7FFFFFFF, 0xFFFFFFFF) if precision == "tf32" and np.isnan(value) else ():
        layer.x[1, 4, 5, 6] = np.uint32(bits).view(np.float32)  # the NaN of GPUs, and minus that
    y = to_host(layer.forward("relu")[0])  # (N, OH, OW, K)
    touched = np.isnan(y).any(axis=3) if np.isnan(value) else np.isinf(y).any(axis=3)  # (N, OH, OW)
    assert touched.sum() == 9 and touched[1, 3:6, 4:7].all()
    assert np.isnan(y[touched]).all() or np.isinf(value)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [ALIGNED[1], NARROW[0]], ids=("aligned", "narrow"))
def test_any_order_of_threads_gives_the_same_bits(
    emulator: Any, monkeypatch: pytest.MonkeyPatch, precision: str, case: Case
) -> None:
    monkeypatch.setattr(emulator._kernels, "ORDERS", (0, 1, 2))
    layer = Layer(precision, case)
    layer.forward(statistics=True)
    layer.input_gradient()
    layer.weight_gradient()


@pytest.mark.parametrize("shape", [(0, 5, 5, 8), (0, 5, 5, 3)])
def test_empty_batch(device: Any, shape: tuple[int, int, int, int]) -> None:
    layer = Layer("bf16", Case(shape, 8, SAME))
    y, statistics = layer.forward(statistics=True)
    assert y.shape == (0, 5, 5, 8) and statistics.partial.shape == (0, 2, 8)
    assert layer.input_gradient().shape == shape
    assert not layer.weight_gradient().get().any()


def test_largest_tile_where_there_is_work_for_all_multiprocessors() -> None:
    def chosen(rows: int, cols: int) -> tuple[int, int]:
        return choose_tile(rows, cols, 132, 2, True)[:2]

    assert chosen(131072, 256) == (128, 128)
    assert chosen(131072, 64) == (256, 64)
    assert chosen(8192, 64) == (64, 64)
    assert choose_tile(131072, 256, 132, 8, True) == choose_tile(131072, 256, 132, 2, False) == TILES[-1]


@pytest.mark.parametrize(("tiles", "slices"), [(1, 1), (1, 16384), (5, 16384), (144, 256), (600, 64), (3, 9)])
def test_portions_of_weight_gradients_occupy_a_gpu(tiles: int, slices: int) -> None:
    splits = choose_splits(tiles, slices)
    assert 1 <= splits <= max(1, slices // 4)
    assert tiles * splits <= 264 or splits == 1 or tiles > 100
    if tiles == 1 and slices == 16384:
        assert splits > 200
