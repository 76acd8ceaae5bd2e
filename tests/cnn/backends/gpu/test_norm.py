"""Batch norm's kernels against the reference in float64."""

import numpy as np
import pytest

from cnn.backends.gpu import norm
from cnn.backends.reference import ReferenceBackend
from tests.cnn.backends.gpu.storage import KINDS, TOLERANCE, WIDE, error, random, to_device, to_host

pytestmark = pytest.mark.usefixtures("device")
REFERENCE = ReferenceBackend()
ACTIVATIONS = ("", "relu", "sigmoid", "tanh", "silu", "gelu")
# Scalar loads; 16-byte loads; several slices of channels, the last one not full; vectors; several blocks of rows.
SHAPES = ((3, 5, 7, 3), (2, 5, 3, 16), (2, 2, 1, 1040), (70, 40), (3, 17, 19, 8))
CASES = [(shape, "relu") for shape in SHAPES] + [((2, 3, 2, 24), kind) for kind in ACTIVATIONS]


class Layer:
    """A batch norm's arrays on the device and, in float64, on the host."""

    def __init__(self, generator: np.random.Generator, shape: tuple[int, ...], kind: str) -> None:
        wide, channels = np.dtype(WIDE[kind]).name, shape[-1]
        self.x = to_device(generator.normal(size=shape) * 2 + 3, kind)  # shape
        self.scale, self.shift = (random(generator, (channels,), wide) for _ in range(2))  # (C,) each
        self.running = [to_device(np.full(channels, value), wide) for value in (0.5, 2.0)]  # (C,) each
        self.rows, self.momentum, self.epsilon = self.x.size // channels, 0.2, 1e-5
        self.d_scale, self.d_shift = (to_device(np.full(channels, np.nan), wide) for _ in range(2))  # (C,) each

    def forward(self, activation: str) -> tuple:
        mean, variance = norm.merge(norm.statistics(self.x), self.rows, *self.running, self.momentum)  # (C,) each
        y = norm.apply(self.x, self.scale, self.shift, mean, variance, self.epsilon, activation)  # shape of x
        return y, mean, variance

    def backward(self, dy, mean, variance, activation: str):
        affine = (self.scale, self.shift, mean, variance)
        return norm.backward(dy, self.x, *affine, self.epsilon, activation, self.d_scale, self.d_shift)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "activation"), CASES)
def test_passes_agree_with_the_reference(kind: str, shape: tuple[int, ...], activation: str) -> None:
    generator = np.random.default_rng(0)
    layer, dy = Layer(generator, shape, kind), random(generator, shape, kind)
    x, scale, shift = (to_host(array) for array in (layer.x, layer.scale, layer.shift))
    running = [to_host(array) for array in layer.running]  # (C,) each
    y, mean, variance = layer.forward(activation)
    dx = layer.backward(dy, mean, variance, activation)

    expected_y, expected_mean, expected_variance = REFERENCE.batch_norm_train(
        x, scale, shift, *running, layer.momentum, layer.epsilon, activation
    )
    d_scale, d_shift = np.empty(shape[-1]), np.empty(shape[-1])  # (C,) each
    expected_dx = REFERENCE.batch_norm_backward(
        to_host(dy), x, scale, shift, expected_mean, expected_variance, layer.epsilon, activation, d_scale, d_shift
    )
    for found, expected in ((y, expected_y), (dx, expected_dx)):
        assert error(found, expected) < TOLERANCE[kind]
    tolerance = min(TOLERANCE[kind], 1e-5)  # vectors are wide
    for found, expected in ((mean, expected_mean), (variance, expected_variance), (layer.d_scale, d_scale),
                            (layer.d_shift, d_shift), *zip(layer.running, running, strict=True)):  # fmt: skip
        assert error(found, expected) < tolerance


def test_gradients_agree_with_finite_differences() -> None:
    generator = np.random.default_rng(1)
    layer = Layer(generator, (2, 4, 3, 6), "float64")
    dy = random(generator, layer.x.shape, "float64")  # (2, 4, 3, 6): of the loss, the sum of dy * y
    _, mean, variance = layer.forward("silu")
    dx = layer.backward(dy, mean, variance, "silu")  # (2, 4, 3, 6)

    def loss(values, name: str) -> float:
        before = getattr(layer, name)
        setattr(layer, name, values)
        y = layer.forward("silu")[0]  # (2, 4, 3, 6)
        setattr(layer, name, before)
        return float((to_host(y) * to_host(dy)).sum())

    for name, gradient in (("x", dx), ("scale", layer.d_scale), ("shift", layer.d_shift)):
        start, direction = to_host(getattr(layer, name)), generator.normal(size=gradient.shape)  # shape of gradient
        there, back = (loss(to_device(start + step * direction, "float64"), name) for step in (1e-5, -1e-5))
        assert (there - back) / 2e-5 == pytest.approx((to_host(gradient) * direction).sum(), rel=1e-7)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_variance_of_a_small_deviation_from_a_large_mean(kind: str) -> None:
    x = 1000 + 0.1 * np.random.default_rng(2).normal(size=(2000, 4))  # (2000, 4)
    x[0] = 0  # the first row, from which distances are measured, may itself be far away
    for rows in (x, x[1:]):  # (2000, 4), (1999, 4)
        rows = to_host(to_device(rows, kind))  # as stored
        mean, variance = norm.merge(norm.statistics(to_device(rows, kind)), len(rows), None, None, 0.1)  # (4,) each
        assert error(mean, rows.mean(axis=0)) < 1e-6
        assert error(variance, rows.var(axis=0)) < 1e-2


def test_merging_the_tiles_of_a_convolution() -> None:
    x = np.random.default_rng(3).normal(size=(2110, 10)) * 2 + 5  # (2110, 10)
    tiles = [x[first : first + 7] for first in range(0, len(x), 7)]  # (7, 10) each, the last one (3, 10)
    partial = np.stack([(t.mean(axis=0), ((t - t.mean(axis=0)) ** 2).sum(axis=0)) for t in tiles])  # (302, 2, 10)
    mean, variance = norm.merge(norm.Statistics(to_device(partial, "float64"), 7), len(x), None, None, 0.1)
    assert error(mean, x.mean(axis=0)) < 1e-12
    assert error(variance, x.var(axis=0)) < 1e-12


def test_running_statistics_of_channels_that_are_not_finite_stay() -> None:
    x = np.random.default_rng(4).normal(size=(9, 5))  # (9, 5)
    x[3, 1], x[4, 2] = np.inf, np.nan
    running = [to_device(np.full(5, value), "float64") for value in (0.5, 2.0)]  # (5,) each
    scale = to_device(np.ones(5), "float64")  # (5,)
    device_x = to_device(x, "float64")  # (9, 5)
    mean, variance = norm.merge(norm.statistics(device_x), 9, *running, 0.1)  # (5,) each
    y = to_host(norm.apply(device_x, scale, scale, mean, variance, 1e-5, "relu"))  # (9, 5)
    assert np.isnan(y[:, 2]).all()
    for array, start in zip(running, (0.5, 2.0), strict=True):
        moved = to_host(array) != start  # (5,)
        assert moved.tolist() == [True, False, False, True, True]


def test_one_row_and_no_row() -> None:
    x = np.array([[1.0, -2.0]])  # (1, 2)
    running = [to_device(np.full(2, value), "float64") for value in (0.0, 1.0)]  # (2,) each
    mean, variance = norm.merge(norm.statistics(to_device(x, "float64")), 1, *running, 0.5)  # (2,) each
    assert to_host(mean).tolist() == [1.0, -2.0]
    assert to_host(variance).tolist() == [0.0, 0.0]
    assert to_host(running[1]).tolist() == [0.5, 0.5]
    none, sums = to_device(np.empty((0, 3, 3, 2)), "float64"), to_device(np.full(2, np.nan), "float64")
    assert norm.apply(none, mean, mean, mean, variance, 1e-5, "").shape == none.shape
    norm.channel_sums(none, sums)
    assert to_host(sums).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 3), (2, 7, 5, 24), (3, 90, 64, 3), (9000, 8)])
def test_channel_sums(kind: str, shape: tuple[int, ...]) -> None:
    x = random(np.random.default_rng(5), shape, kind)  # shape
    sums = to_device(np.full(shape[-1], np.nan), np.dtype(WIDE[kind]).name)  # (C,)
    norm.channel_sums(x, sums)
    exact = to_host(x).reshape(-1, shape[-1]).sum(axis=0)  # (C,)
    assert error(sums, exact) < min(TOLERANCE[kind], 1e-5)


def test_sums_of_more_parts_than_a_merge_has_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "_MIN_ROWS", 1)
    x = random(np.random.default_rng(5), (4 * norm._MERGE_LANES + 6, 255), "float32")  # (262, 255): 66 parts
    sums = to_device(np.full(255, np.nan), "float32")  # (255,)
    norm.channel_sums(x, sums)
    assert error(sums, to_host(x).sum(axis=0)) < 1e-5


def test_views_with_strides_and_unaligned_views() -> None:
    whole = random(np.random.default_rng(6), (4, 3, 5, 16), "float32")  # (4, 3, 5, 16)
    flat = random(np.random.default_rng(6), (1 + 40 * 8,), "float32")  # (321,)
    for x in (whole[..., :8], whole[:, :, ::2], flat[1:].reshape(40, 8)):
        mean, variance = norm.merge(norm.statistics(x), x.size // x.shape[-1], None, None, 0.1)  # (C,) each
        rows = to_host(x).reshape(-1, x.shape[-1])  # (M, C)
        assert error(mean, rows.mean(axis=0)) < 1e-5
        assert error(variance, rows.var(axis=0)) < 1e-5


def test_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def counting(name: str, *arguments, kernel=norm._kernel):
        launched.append(name)
        return kernel(name, *arguments)

    monkeypatch.setattr(norm, "_kernel", counting)
    layer = Layer(np.random.default_rng(7), (2, 3, 3, 8), "float32")
    y, mean, variance = layer.forward("relu")
    assert launched == ["norm_statistics", "norm_merge", "norm_apply"]
    launched.clear()
    layer.backward(y, mean, variance, "relu")
    assert launched == ["norm_backward_sums", "sums_merge", "norm_backward_apply"]
    launched.clear()
    norm.channel_sums(y, layer.d_shift)
    assert launched == ["channel_sums"]
