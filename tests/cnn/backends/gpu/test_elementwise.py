"""Elementwise kernels, dropout and softmax against the reference in float64."""

import numpy as np
import pytest

from cnn.backends.gpu import elementwise
from cnn.backends.reference import ReferenceBackend
from cnn.rng import uniform
from tests.cnn.backends.gpu.storage import KINDS, TOLERANCE, error, random, to_bf16, to_device, to_host

pytestmark = pytest.mark.usefixtures("device")
REFERENCE = ReferenceBackend()
ACTIVATIONS = ("", "relu", "sigmoid", "tanh", "silu", "gelu")
SHAPES = ((2, 7, 5, 3), (2, 6, 8, 16), (2, 5))  # a rest after whole vectors; none; no vector


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_sums_agree_with_the_reference(kind: str, activation: str) -> None:
    generator = np.random.default_rng(0)
    for shape in SHAPES:
        x, dy = random(generator, shape, kind), random(generator, shape, kind)  # shape
        y = elementwise.activate(activation, x)  # shape
        # Each kind needs one of x and y only.
        given = (x, None) if activation in ("silu", "gelu") else (None, y)
        dx = elementwise.activate_backward(activation, dy, *given)  # shape
        hosts = to_host(x), to_host(dy), to_host(y)  # shape each
        for found, expected in (
            (y, REFERENCE.activate(activation, hosts[0])),
            (dx, REFERENCE.activate_backward(activation, hosts[1], hosts[0], hosts[2])),
            (elementwise.add(x, dy, activation), REFERENCE.add(hosts[0], hosts[1], activation)),
            (elementwise.scale(x, 0.7), 0.7 * hosts[0]),
        ):
            assert found.dtype == x.dtype
            assert error(found, expected) < TOLERANCE[kind]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_propagate_nan(activation: str) -> None:
    x = to_device(np.array([np.nan, 1.0]), "float32")  # (2,)
    for y in (elementwise.activate(activation, x), elementwise.add(x, x, activation)):
        assert np.isnan(to_host(y)).tolist() == [True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("numbers", [None, (2**40 + 5, 17)])
def test_dropout_draws_as_on_the_host(kind: str, shape: tuple[int, ...], numbers: tuple[int, ...] | None) -> None:
    x = to_device(np.random.default_rng(1).uniform(1, 2, shape), kind)  # shape
    key, rate = 2**63 + 12345, 0.3
    rows = None if numbers is None else to_device(np.array(numbers), "int64")  # (2,)
    y = elementwise.dropout(x, rate, key, rows)  # shape
    draws = uniform(key, np.arange(2) if numbers is None else np.array(numbers), x[0].size).reshape(shape)  # shape
    assert ((to_host(y) != 0) == (draws >= np.float32(rate))).all()
    assert error(y, to_host(x) * (draws >= np.float32(rate)) / (1 - rate)) < TOLERANCE[kind]


def test_dropout_of_images_with_many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those with more slices of columns than a grid has blocks."""
    monkeypatch.setattr(elementwise, "_MAX_GRID_Y", 2)
    x = np.ones((3, 1300), np.float32)  # (3, 1300): 6 slices
    found = elementwise.dropout(to_device(x, "float32"), 0.3, 7, None)  # (3, 1300)
    np.testing.assert_allclose(found.get(), REFERENCE.dropout(x, 0.3, 7, None), rtol=1e-6)


def test_dropout_compares_equal_draws() -> None:
    """A rate that is itself a draw: that value is kept, as in the reference."""
    draw = uniform(5, np.arange(1), 64)[0, 40]  # ()
    x = to_device(np.ones((1, 64)), "float32")  # (1, 64)
    expected = REFERENCE.dropout(np.ones((1, 64), np.float32), float(draw), 5, None)  # (1, 64)
    assert (elementwise.dropout(x, float(draw), 5, None).get() == expected).all()
    assert expected[0, 40] > 0


def test_conversions() -> None:
    special = [0.0, -0.0, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, 1e-40]
    normal = np.random.default_rng(2).normal(size=1000)  # (1000,)
    x = np.concatenate([special, normal]).astype(np.float32)  # (1009,)
    narrow = elementwise.convert(to_device(x, "float32"), np.uint16)  # (1009,)
    assert (narrow.get() == to_bf16(x)).all()
    wide = elementwise.convert(narrow, np.float32)  # (1009,)
    assert (wide.get() == to_host(narrow)).all()
    assert elementwise.convert(wide, np.float32) is wide
    nans = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)  # (4,)
    nan = elementwise.convert(to_device(nans, "float32"), np.uint16)  # (4,)
    assert np.isnan(to_host(nan)).all()
    odd = narrow[1:].reshape(2, 504)  # not aligned to 16 bytes
    assert (elementwise.convert(odd, np.float32).get() == to_host(odd)).all()


@pytest.mark.parametrize("kind", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(9, 10), (2, 70), (1, 1)])
def test_softmax_agrees_with_the_reference(kind: str, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    x, dy = to_device(30 * generator.normal(size=shape) + 500, kind), random(generator, shape, kind)  # shape
    y = elementwise.softmax(x)  # shape
    assert error(y, REFERENCE.softmax(to_host(x))) < TOLERANCE[kind]
    dx = elementwise.softmax_backward(dy, y)  # shape
    expected = REFERENCE.softmax_backward(to_host(dy), to_host(y))  # shape
    assert np.abs(to_host(dx) - expected).max() < TOLERANCE[kind]


def test_views_with_strides_and_empty_arrays() -> None:
    whole = random(np.random.default_rng(4), (4, 6, 16), "float32")  # (4, 6, 16)
    x = whole[:, ::2, 3:10]  # (4, 3, 7)
    assert (elementwise.add(x, x, "relu").get() == np.maximum(2 * x.get(), 0)).all()
    assert elementwise.softmax(whole[:0, 0]).shape == (0, 16)
    assert elementwise.dropout(whole[:0], 0.5, 1, None).shape == (0, 6, 16)
    assert elementwise.convert(whole[:0], np.uint16).shape == (0, 6, 16)
