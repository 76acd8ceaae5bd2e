"""Grad-CAM: class activation maps (Selvaraju et al., 2017, "Visual Explanations from Deep Networks").

The map of a class is the positive part of a weighted sum of the last feature maps. A feature map's weight is the
gradient of the class's output w.r.t. it, averaged over its pixels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cnn.arena import Tree
from cnn.backends.base import Array
from cnn.errors import ShapeError
from cnn.inputs.checks import check_images, check_labels
from cnn.inputs.preprocess import normalisation, preprocess
from cnn.layers import BatchNorm, Cache, Layer, Residual, Run, Sequential
from cnn.network import Network


class _BoundLayer(NamedTuple):
    """A layer with its arrays: parameters, state and gradients."""

    layer: Layer
    p: Tree
    s: Tree
    g: Tree


class GradCam:
    """Grad-CAM of `network` for images whose channels have `mean` and `std` (3,), in 0..255 units.

    The network runs in inference mode: batch norm with its running statistics, no dropout. Its gradients are
    overwritten. Raises `ShapeError` where it does not end in vectors, or has a batch norm or residual block after the
    last feature maps.
    """

    def __init__(self, network: Network, mean: np.ndarray, std: np.ndarray) -> None:
        self.network, self.backend = network, network.backend
        self.mean, self.std = normalisation(network, mean, std)  # (3,)
        arrays = network.parameters.tree, network.state.tree, network.gradients.tree
        layers = list(_flatten(_BoundLayer(network.layer, *arrays)))
        shape, cut = network.in_shape, 0
        for bound in layers:
            if len(out_shape := bound.layer.specs(shape).out_shape) != 3:
                break
            shape, cut = out_shape, cut + 1
        else:
            raise ShapeError(f"expected a network that ends in vectors, found outputs of shape {shape}; end in a pool")
        self._body, self._tail = layers[:cut], layers[cut:]  # up to the last feature maps, and after them
        for bound in self._tail:
            # Their backward pass needs a cache that only the training mode makes.
            if isinstance(bound.layer, BatchNorm | Residual):
                raise ShapeError(
                    f"expected only dense layers after the last feature maps, found {bound.layer}; move it before them"
                )

    def maps(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the maps of `classes` (N,) for uint8 images (N, H, W, 3): (N, H, W) on the host.

        Each is scaled to a maximum of 1, unless all its values are 0, and interpolated from the size of the feature
        maps. Raises `InputError` for other arrays.
        """
        check_images(images, self.network.in_shape)
        check_labels(classes, len(images), self.network.out_shape[0])
        run = Run(self.backend, training=False)
        x = preprocess(self.backend, images, None, self.mean, self.std)  # (N, H, W, 3)
        for layer, p, s, _ in self._body:
            x, _ = layer.forward(run, p, s, x)  # finally (N, h, w, C)
        gradient = self.backend.to_host(self._gradient(run, x, classes))  # (N, h, w, C)
        weights = gradient.mean(axis=(1, 2), keepdims=True)  # (N, 1, 1, C)
        found = np.maximum((self.backend.to_host(x) * weights).sum(axis=3), 0.0)  # (N, h, w)
        highest = found.max(axis=(1, 2), keepdims=True)  # (N, 1, 1)
        found = np.divide(found, highest, out=np.zeros_like(found), where=highest > 0.0)  # (N, h, w)
        return _enlarge(found, images.shape[1:3])

    def _gradient(self, run: Run, x: Array, classes: np.ndarray) -> Array:
        """The gradient of each image's output for its class w.r.t. its feature maps x (N, h, w, C): (N, h, w, C)."""
        caches: list[Cache] = []
        for layer, p, s, _ in self._tail:
            x, cache = layer.forward(run, p, s, x)
            caches.append(cache)
        one_hot = np.zeros(x.shape, self.network.dtype)  # (N, classes)
        one_hot[np.arange(len(classes)), classes] = 1.0
        d = self.backend.asarray(one_hot)
        for layer, p, s, g in reversed(self._tail):
            d = layer.backward(run, p, s, g, caches.pop(), d)  # finally (N, h, w, C)
        return d


def _flatten(bound: _BoundLayer) -> Iterator[_BoundLayer]:
    """The layers of nested sequences, in order."""
    if not isinstance(bound.layer, Sequential):
        yield bound
        return
    for name, layer in bound.layer.layers:
        yield from _flatten(_BoundLayer(layer, *(tree.get(name, {}) for tree in bound[1:])))


def _enlarge(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """maps (N, h, w) interpolated bilinearly to (N, H, W), by pixel centres."""
    rows, columns = (_interpolation(*sides) for sides in zip(maps.shape[1:], size, strict=True))  # (H, h), (W, w)
    return np.asarray(rows @ maps @ columns.T, maps.dtype)  # (N, H, W)


def _interpolation(few: int, many: int) -> np.ndarray:
    """Weights of linear interpolation from `few` to `many` values: float64 (many, few)."""
    positions = np.clip((np.arange(many) + 0.5) * few / many - 0.5, 0, few - 1)  # (many,)
    return np.maximum(0.0, 1.0 - np.abs(positions[:, None] - np.arange(few)))
