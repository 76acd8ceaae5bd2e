"""Preprocessing on the device, from uint8 images to a network's normalised floating-point input."""

import numpy as np

from cnn.backends.base import Array, Backend
from cnn.inputs.augment import Maps, identity_maps
from cnn.network import Network


def normalisation(network: Network, mean: np.ndarray, std: np.ndarray) -> tuple[Array, Array]:
    """Per-channel mean and std (3,) each, in 0..255 units, on the network's device; a std of 0 becomes 1."""
    to_device, dtype = network.backend.asarray, network.dtype
    return to_device(np.asarray(mean, dtype)), to_device(np.where(np.asarray(std) > 0, std, 1).astype(dtype))


def preprocess(
    backend: Backend, images: Array, maps: Maps | None, mean: Array, std: Array, colours: np.ndarray | None = None
) -> Array:
    """Augment and normalise uint8 images (B, H, W, 3), of the host or the device: floating point (B, H, W, 3)."""
    ys, xs, holes = identity_maps(*images.shape[:3]) if maps is None else maps
    images, ys, xs, holes, colours = backend.upload(images, ys, xs, holes, colours)
    return backend.resample(images, ys, xs, holes, backend.asarray(mean), backend.asarray(std), colours)
