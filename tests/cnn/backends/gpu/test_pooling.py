"""The pooling kernels against the reference in float64."""

import numpy as np
import pytest

from cnn.backends.base import Window
from cnn.backends.gpu import pooling
from cnn.backends.reference import ReferenceBackend
from tests.cnn.backends.gpu.storage import KINDS, TOLERANCE, WIDE, error, random, to_device, to_host

pytestmark = pytest.mark.usefixtures("device")
REFERENCE = ReferenceBackend()
SHAPES = ((2, 7, 5, 3), (2, 6, 7, 16), (1, 5, 4, 528))  # scalar loads, 16-byte loads, several slices of channels
WINDOWS = (
    Window((2, 2), (2, 2)),
    Window((3, 3), (2, 2), 1, 1, 1, 1),  # overlapping
    Window((3, 2), (1, 2), 0, 1, 1, 0),  # padded on two sides
    Window((2, 1), (3, 2)),  # pixels that no window covers
)
LARGE = Window((20, 20), (2, 1), 10, 9, 10, 9)  # indices of more than 8 bits
CASES = [(shape, window) for shape in SHAPES for window in WINDOWS] + [(SHAPES[1], LARGE)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "window"), CASES)
def test_windows_agree_with_the_reference(kind: str, shape: tuple[int, ...], window: Window) -> None:
    generator = np.random.default_rng(0)
    x = to_device(generator.integers(-3, 4, shape), kind)  # shape; with many equal values
    y, winners = pooling.max_pool(x, window)  # (N, OH, OW, C) each
    expected_y, expected_winners = REFERENCE.max_pool(to_host(x), window)
    assert (to_host(y) == expected_y).all()
    assert (winners.get() == expected_winners).all()
    dy = random(generator, y.shape, kind)  # (N, OH, OW, C)
    for found, expected in (
        (pooling.max_pool_backward(dy, winners, shape, window),
         REFERENCE.max_pool_backward(to_host(dy), expected_winners, shape, window)),
        (pooling.average_pool(x, window), REFERENCE.average_pool(to_host(x), window)),
        (pooling.average_pool_backward(dy, shape, window),
         REFERENCE.average_pool_backward(to_host(dy), shape, window)),
    ):  # fmt: skip
        assert str(found.dtype) == {"bf16": "uint16"}.get(kind, kind)
        assert error(found, expected) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 33, 21, 8), (3, 1, 1, 5)])
def test_global_pools_agree_with_the_reference(kind: str, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    x = to_device(generator.integers(-20, 20, shape), kind)  # (N, H, W, C); with equal maxima
    y, winners = pooling.global_max_pool(x)  # (N, C) each
    expected_y, expected_winners = REFERENCE.global_max_pool(to_host(x))
    assert (to_host(y) == expected_y).all()
    assert (winners.get() == expected_winners).all()
    mean = pooling.global_average_pool(x)  # (N, C)
    assert y.dtype == mean.dtype == WIDE[kind]  # not narrow: vectors never are
    assert error(mean, REFERENCE.global_average_pool(to_host(x))) < min(TOLERANCE[kind], 1e-5)
    dy = random(generator, y.shape, np.dtype(WIDE[kind]).name)  # (N, C)
    for found, expected in (
        (pooling.global_max_pool_backward(dy, winners, shape, x.dtype),
         REFERENCE.global_max_pool_backward(to_host(dy), expected_winners, shape, np.float64)),
        (pooling.global_average_pool_backward(dy, shape, x.dtype),
         REFERENCE.global_average_pool_backward(to_host(dy), shape, np.float64)),
    ):  # fmt: skip
        assert found.dtype == x.dtype
        assert error(found, expected) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", ["float32", "bf16"])
def test_max_pools_of_nan_and_infinity(kind: str) -> None:
    x = np.random.default_rng(2).normal(size=(2, 4, 6, 8)).round(1)  # (2, 4, 6, 8)
    x[0, 1, 2, 3] = x[0, 1, 3, 3] = x[1, 0, 0, 0] = x[1, 3, 5, 0] = np.nan
    x[1, :, :, 5] = -np.inf
    x[1, 2, 1, 6] = np.inf
    device_x = to_device(x, kind)  # (2, 4, 6, 8)
    for window in WINDOWS[:2]:
        y, winners = pooling.max_pool(device_x, window)  # (2, OH, OW, 8) each
        expected_y, expected_winners = REFERENCE.max_pool(to_host(device_x), window)
        np.testing.assert_array_equal(to_host(y), expected_y)
        np.testing.assert_array_equal(winners.get(), expected_winners)
    y, winners = pooling.global_max_pool(device_x)  # (2, 8) each
    expected_y, expected_winners = REFERENCE.global_max_pool(to_host(device_x))
    np.testing.assert_array_equal(to_host(y), expected_y)
    np.testing.assert_array_equal(winners.get(), expected_winners)


def test_bits_of_an_image_do_not_depend_on_the_others() -> None:
    x = random(np.random.default_rng(3), (3, 9, 7, 8), "float32")  # (3, 9, 7, 8)
    for pool in (pooling.global_average_pool, lambda x: pooling.average_pool(x, WINDOWS[1])):
        assert (pool(x).get()[1:2] == pool(x[1:2]).get()).all()


def test_views_with_strides_and_no_images() -> None:
    whole = random(np.random.default_rng(4), (2, 6, 6, 16), "float32")  # (2, 6, 6, 16)
    x = whole[:, ::2, :, 4:12]  # (2, 3, 6, 8)
    assert error(pooling.average_pool(x, WINDOWS[0]), REFERENCE.average_pool(to_host(x), WINDOWS[0])) < 1e-6
    assert error(pooling.global_average_pool(x), REFERENCE.global_average_pool(to_host(x))) < 1e-6
    none = whole[:0]  # (0, 6, 6, 16)
    assert pooling.max_pool(none, WINDOWS[1])[0].shape == (0, 3, 3, 16)
    assert pooling.global_average_pool(none).shape == (0, 16)
    assert pooling.global_average_pool_backward(none[:, 0, 0], none.shape, none.dtype).shape == none.shape
