"""Initialisers, and initialisation from images."""

import math

import numpy as np
import pytest

from cnn.backends.reference import ReferenceBackend
from cnn.initialise import identity
from cnn.layers import GELU, Conv2D, Whitening, chain
from cnn.network import Network

REFERENCE = ReferenceBackend()


def test_identity_kernels_copy_the_channels_and_other_filters_are_small() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3))
    for filters in (2, 3, 7):
        network = Network(Conv2D(filters, 3, bias=False, initialise=identity), (5, 5, 3), REFERENCE, 0, np.float64)
        y = network.infer(x)
        np.testing.assert_allclose(y[..., :3], x[..., :filters])
    others = network.tensors()["weight"][..., 3:]
    assert 0.9 / math.sqrt(27) < np.abs(others).max() <= 1 / math.sqrt(27)
    assert abs(others.mean()) < 0.03 and others.std() == pytest.approx(1 / math.sqrt(3 * 27), rel=0.15)


def test_whitened_patches_are_uncorrelated_with_equal_variance() -> None:
    smooth = np.random.default_rng(0).normal(size=(70, 9, 8, 3)).cumsum(axis=1).cumsum(axis=2)
    layer = Whitening(24, epsilon=0.0)
    network = Network(chain(inner=chain(whiten=layer, gelu=GELU())), (9, 8, 3), REFERENCE, 0, np.float64)
    assert network.needs_data
    network.initialise_from_images(smooth)
    weight = network.tensors()["inner.whiten.weight"]
    y = REFERENCE.conv2d(smooth, weight, None, layer.window).reshape(-1, 24)
    np.testing.assert_allclose(y[:, :12].T @ y[:, :12] / len(y), np.eye(12), atol=1e-6)
    np.testing.assert_array_equal(y[:, 12:], -y[:, :12])
    flat = weight.reshape(12, 24)
    assert (flat[np.abs(flat[:, :12]).argmax(axis=0), range(12)] > 0).all()
    assert (np.diff(np.linalg.norm(flat[:, :12], axis=0)) > 0).all()  # the largest variance first
    assert np.abs(layer.parameters_from_images(smooth)["weight"]).max() > 10 * np.abs(
        Whitening(24, epsilon=1e3).parameters_from_images(smooth)["weight"]
    ).max()


def test_initialising_from_images_changes_only_a_first_whitening_layer() -> None:
    network = Network(chain(conv=Conv2D(2), whiten=Whitening(16)), (5, 5, 1), REFERENCE)
    before = network.parameters.flat.copy()
    assert not network.needs_data
    network.initialise_from_images(np.ones((2, 5, 5, 1)))
    np.testing.assert_array_equal(network.parameters.flat, before)
