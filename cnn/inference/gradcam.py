"""Where a network looks: Grad-CAM (Selvaraju et al., 2017, "Visual Explanations from Deep Networks").

The last feature maps still know where things are. How much each of them speaks for a class is the mean of the
derivative of the class's output by it; their sum with these weights, as far as it is positive, is a map of the places
that speak for the class.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cnn.arena import Tree
from cnn.backends.base import Array
from cnn.errors import ShapeError
from cnn.layers import BatchNorm, Cache, Layer, Residual, Run, Sequential
from cnn.network import Network
from cnn.training.trainer import normalisation, preprocess


class _Placed(NamedTuple):
    """A layer with its arrays: parameters, state and gradients."""

    layer: Layer
    p: Tree
    s: Tree
    g: Tree


class GradCam:
    """Maps for `network` and images whose channels have `mean` and `std` (3,), in 0..255 units.

    The network is used as it is after training: batch norm with its running statistics, no dropout. Its gradients
    are overwritten. Raises `ShapeError` where it never leaves the image's rows and columns behind, or does more than
    dense layers and functions of single numbers after that.
    """

    def __init__(self, network: Network, mean: np.ndarray, std: np.ndarray) -> None:
        self.network, self.backend = network, network.backend
        self.mean, self.std = normalisation(network, mean, std)  # (3,)
        arrays = network.parameters.tree, network.state.tree, network.gradients.tree
        layers = list(_in_turn(_Placed(network.layer, *arrays)))
        shape, cut = network.in_shape, 0
        for placed in layers:
            if len(out_shape := placed.layer.specs(shape).out_shape) != 3:
                break
            shape, cut = out_shape, cut + 1
        else:
            raise ShapeError(f"expected a network that ends in vectors, found outputs of shape {shape}; end in a pool")
        self._body, self._tail = layers[:cut], layers[cut:]  # up to the last feature maps, and from there on
        for placed in self._tail:
            # Their backward goes by what only a training pass notes.
            if isinstance(placed.layer, BatchNorm | Residual):
                raise ShapeError(f"expected only dense layers after the last feature maps, found {placed.layer}")

    def maps(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """How much each place of uint8 images (N, H, W, 3) speaks for the classes (N,): (N, H, W), on the host.

        From 0 to 1, the largest of each image; all 0 where nothing speaks for the class. The feature maps are
        coarser than the image: in between, the values are interpolated.
        """
        run = Run(self.backend, training=False)
        x = preprocess(self.backend, images, None, self.mean, self.std)  # (N, H, W, 3)
        for layer, p, s, _ in self._body:
            x, _ = layer.forward(run, p, s, x)  # (N, h, w, C) in the end
        weights = self._derivative(run, x, classes).mean(axis=(1, 2))  # (N, C)
        found = self.backend.to_host((x * weights[:, None, None]).sum(axis=3))  # (N, h, w)
        found = np.maximum(found, 0.0)
        most = found.max(axis=(1, 2), keepdims=True)  # (N, 1, 1)
        found = np.divide(found, most, out=np.zeros_like(found), where=most > 0.0)  # (N, h, w)
        return _enlarged(found, images.shape[1:3])

    def _derivative(self, run: Run, x: Array, classes: np.ndarray) -> Array:
        """Of each image's output for its class, by its feature maps x (N, h, w, C): (N, h, w, C)."""
        caches: list[Cache] = []
        for layer, p, s, _ in self._tail:
            x, cache = layer.forward(run, p, s, x)
            caches.append(cache)
        one_hot = np.zeros(x.shape, self.network.dtype)  # (N, classes)
        one_hot[np.arange(len(classes)), classes] = 1.0
        d = self.backend.asarray(one_hot)
        for layer, p, s, g in reversed(self._tail):
            d = layer.backward(run, p, s, g, caches.pop(), d)  # (N, h, w, C) in the end
        return d


def _in_turn(placed: _Placed) -> Iterator[_Placed]:
    """The layers within all layers of layers that only go in turn."""
    if not isinstance(placed.layer, Sequential):
        yield placed
        return
    for name, layer in placed.layer.layers:
        yield from _in_turn(_Placed(layer, *(tree.get(name, {}) for tree in placed[1:])))


def _enlarged(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """maps (N, h, w), interpolated linearly to (N, H, W), a value being at the middle of its place."""
    rows, columns = (_interpolation(*sides) for sides in zip(maps.shape[1:], size, strict=True))  # (H, h), (W, w)
    return np.asarray(rows @ maps @ columns.T, maps.dtype)  # (N, H, W)


def _interpolation(few: int, many: int) -> np.ndarray:
    """What each of `few` values in a row adds to each of `many`: float64 (many, few)."""
    places = np.clip((np.arange(many) + 0.5) * few / many - 0.5, 0, few - 1)  # (many,)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(few)))
