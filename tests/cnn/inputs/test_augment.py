"""Random augmentation: flips, shifts, crops, cutout and colour jitter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.backends.cpu import CpuBackend
from cnn.backends.reference import ReferenceBackend
from cnn.inputs.augment import Augment, alternate_flips, identity_maps
from cnn.inputs.preprocess import preprocess
from cnn.rng import uniform
from tests.cnn.oracles import BACKENDS, get_backend, thorough, to_device
from tests.cnn.tiny_task import MEAN, STD

REFERENCE = ReferenceBackend()
JITTER = Augment(False, 0.0, 1.0, brightness=0.4, contrast=0.3, saturation=0.8)
MEANS, STDS = np.array(MEAN), np.array(STD)


def _apply(images: np.ndarray, augment: Augment, key: int) -> np.ndarray:
    ys, xs, holes = augment.maps(key, np.arange(len(images)), *images.shape[1:3])
    return REFERENCE.resample(images, ys, xs, holes, np.zeros(3), np.ones(3))


def _some_images(count: int = 64, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_augmentation_that_is_off_changes_nothing() -> None:
    images = _some_images()
    np.testing.assert_array_equal(_apply(images, Augment(False, 0.0, 1.0), 1), images)
    out = REFERENCE.resample(images, *identity_maps(64, 8, 8), np.zeros(3), np.ones(3))
    np.testing.assert_array_equal(out, images)


def test_flip_mirrors_about_half() -> None:
    images = _some_images(400)
    out = _apply(images, Augment(True, 0.0, 1.0), 1)
    mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((out == images).all(axis=(1, 2, 3)) | mirrored).all()
    assert 160 < mirrored.sum() < 240


def test_alternate_flips_mirror_a_random_half_and_then_the_others() -> None:
    rows = np.arange(1000)
    flips = [alternate_flips(7, rows, epoch) for epoch in range(4)]
    assert 450 < flips[0].sum() < 550
    np.testing.assert_array_equal(flips[1], ~flips[0])
    np.testing.assert_array_equal(flips[2:], flips[:2])
    np.testing.assert_array_equal(alternate_flips(7, rows[[9, 3]], 0), flips[0][[9, 3]])
    assert 400 < (alternate_flips(8, rows, 0) ^ flips[0]).sum() < 600


def test_maps_mirror_the_selected_images() -> None:
    images = _some_images(6)
    which = np.array([True, False, True, True, False, False])
    maps = Augment("alternate", 0.0, 1.0).maps(1, np.arange(6), 8, 8).mirrored(which)
    out = REFERENCE.resample(images, *maps, np.zeros(3), np.ones(3))
    np.testing.assert_array_equal(out, np.where(which[:, None, None, None], images[:, :, ::-1], images))


def test_shift_reflects_at_the_border() -> None:
    images = _some_images()
    out = _apply(images, Augment(False, 0.25, 1.0), 2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    seen = set()
    for n in range(len(images)):
        places = [
            (i, j) for i in range(5) for j in range(5) if np.array_equal(out[n], padded[n, i : i + 8, j : j + 8])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 15  # of 25


def test_crops_stay_inside_and_vary() -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None, None], (50, 32, 32, 3))
    out = _apply(np.ascontiguousarray(ramp), Augment(False, 0.0, 0.25, 1.3), 3)[:, :, 0, 0]
    assert out.min() >= 0 and out.max() <= 31
    assert (np.diff(out, axis=1) >= 0).all()  # monotonic
    extent = out[:, -1] - out[:, 0]
    assert extent.min() < 20 and extent.max() > 26


def test_cutout_blanks_a_square() -> None:
    out = _apply(np.full((50, 8, 8, 3), 9, np.uint8), Augment(False, 0.0, 1.0, cutout=0.5), 4)
    blank = (out == 0).all(axis=3).sum(axis=(1, 2))
    assert blank.max() == 16 and blank.min() >= 4


def test_maps_are_a_function_of_key_and_row() -> None:
    augment = Augment(True, 0.1, 0.5, cutout=0.3)
    whole = augment.maps(9, np.arange(10), 16, 12)
    part = augment.maps(9, np.array([7, 2]), 16, 12)
    for one, other in zip(whole, part, strict=True):
        assert one is not None and other is not None
        np.testing.assert_array_equal(one[[7, 2]], other)


# Colours


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_colours_match_a_plain_computation(backend_name: str) -> None:
    """Image by image, pixel by pixel, in unnormalised colours."""
    backend, rows = get_backend(backend_name), np.array([4, 0, 9])
    images = np.random.default_rng(0).integers(0, 256, (3, 7, 9, 3), np.uint8)
    colours = JITTER.colours(11, rows, MEANS, STDS)
    moved = (to_device(backend, array) for array in (MEANS.astype(np.float32), STDS.astype(np.float32)))
    found = backend.to_host(preprocess(backend, images, None, *moved, colours))
    draws = uniform(11, rows, 3).astype(np.float64)
    for n, image in enumerate(images):
        brightness, contrast, saturation = 1 + np.array([0.4, 0.3, 0.8]) * (2 * draws[n] - 1)
        for (i, j), _ in np.ndenumerate(image[:, :, 0]):
            real = brightness * image[i, j]
            real = MEANS + contrast * (real - MEANS)
            luma = 0.299 * real[0] + 0.587 * real[1] + 0.114 * real[2]
            real = luma + saturation * (real - luma)
            np.testing.assert_allclose(found[n, i, j], (real - MEANS) / STDS, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_factors_are_uniform_around_one(name: str) -> None:
    colours = Augment(**{name: 0.5}).colours(3, np.arange(2000), np.zeros(3), np.ones(3))
    assert colours is not None and colours.shape == (2000, 3, 4) and colours.dtype == np.float32
    np.testing.assert_array_equal(colours[:, :, 3], 0)  # no constant where the mean is 0
    # The factor by which the difference of two channels is scaled.
    factors = colours[:, 0, 0] - colours[:, 1, 0]
    assert 0.5 <= factors.min() < 0.51 and 1.49 < factors.max() <= 1.5 and abs(factors.mean() - 1) < 0.02
    grey = colours @ np.array([1, 1, 1, 0])  # (2000, 3)
    expected = np.ones(2000) if name == "saturation" else factors
    np.testing.assert_allclose(grey, np.stack([expected] * 3, axis=1), rtol=1e-5)


def test_without_jitter_there_are_no_colours_and_maps_do_not_depend_on_jitter() -> None:
    rows = np.arange(5)
    assert Augment().colours(1, rows, MEANS, STDS) is None
    plain, jittered = Augment(cutout=0.3), Augment(cutout=0.3, brightness=0.4, contrast=0.4, saturation=0.4)
    for one, other in zip(plain.maps(1, rows, 8, 8), jittered.maps(1, rows, 8, 8), strict=True):
        np.testing.assert_array_equal(one, other)


def test_colours_are_a_function_of_key_and_row() -> None:
    whole, part, other = (
        JITTER.colours(key, rows, MEANS, STDS)
        for key, rows in ((9, np.arange(10)), (9, np.array([7, 2])), (8, np.arange(10)))
    )
    assert whole is not None and other is not None
    np.testing.assert_array_equal(whole[[7, 2]], part)
    assert (np.abs(whole - other).max(axis=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_cutout_is_the_mean_colour(backend_name: str) -> None:
    backend, rows = get_backend(backend_name), np.arange(6)
    augment = Augment(True, 0.1, 0.5, cutout=0.5, brightness=0.4, contrast=0.3, saturation=0.8)
    maps = augment.maps(2, rows, 16, 12)
    assert maps.holes is not None
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 12, 3), np.uint8)
    moved = (to_device(backend, array) for array in (MEANS.astype(np.float32), STDS.astype(np.float32)))
    out = backend.to_host(preprocess(backend, images, maps, *moved, augment.colours(3, rows, MEANS, STDS)))
    for image, (top, bottom, left, right) in zip(out, maps.holes, strict=True):
        assert (image[top:bottom, left:right] == 0).all()
        assert (image == 0).all(axis=2).sum() == (bottom - top) * (right - left)


@pytest.mark.parametrize("threads", [1, 3])
@thorough
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40), st.integers(1, 10)),
    dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_resample_of_any_channels_in_any_precision(threads: int, shape: tuple, dtype: type, seed: int) -> None:
    """SIMD lanes hold the channels in different orders; many images, so that several threads work."""
    generator = np.random.default_rng(seed)
    images = np.repeat(generator.integers(0, 256, shape, np.uint8), 40, axis=0)
    channels = shape[3]
    maps = Augment().maps(seed, np.arange(len(images)), *shape[1:3])
    mean, std = np.full(channels, 120, dtype), np.full(channels, 60, dtype)
    colours = generator.normal(size=(len(images), channels, channels + 1)).astype(np.float32)
    found = CpuBackend(threads).resample(images, *maps, mean, std, colours)
    expected = REFERENCE.resample(images, *maps, mean, std, colours)
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 if dtype is np.float32 else 1e-9)
