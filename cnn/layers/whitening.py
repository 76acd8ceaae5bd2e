"""A convolution that whitens: its kernels are computed from images, not learned.

Neighbouring pixels of an image say nearly the same. Whitening turns small patches so that their numbers are
uncorrelated and of one size, which spares the layers after it from learning to.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from cnn.arena import Shape
from cnn.errors import ShapeError
from cnn.layers.base import Specs, image_shape
from cnn.layers.convolution import Conv2D

_BLOCK = 64  # images at a time, so that their patches take little memory


@dataclass(frozen=True)
class Whitening(Conv2D):
    """The principal components of `kernel`-sized patches, each scaled to variance 1, and their negatives.

    (N, H, W, C) -> (N, OH, OW, filters), where there must be 2 KH KW C filters. Kernels are random until `measure`
    has seen images, and not trained. The bias is, in the first `bias_trained` of the training's steps. `epsilon` is
    added to the variances, so that components that hardly vary are not blown up.
    """

    kernel: int | tuple[int, int] = 2
    padding: int | tuple[int, int] = 0
    bias_trained: float = 1.0
    epsilon: float = 5e-4

    def specs(self, in_shape: Shape) -> Specs:
        needed = 2 * math.prod(self.window.size) * image_shape(self, in_shape)[2]
        if self.filters != needed:
            raise ShapeError(f"{self} needs {needed} filters for images of {in_shape[2]} channels; give it as many")
        out_shape, (weight, *bias), state = super().specs(in_shape)
        parameters = [replace(weight, decay=False, trained=0.0)]
        parameters += [replace(spec, decay=True, trained=self.bias_trained) for spec in bias]
        return Specs(out_shape, tuple(parameters), state)

    def measure(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The kernels that whiten the patches of `images` (N, H, W, C): `weight`, float64 (KH, KW, C, filters)."""
        kh, kw = self.window.size
        channels = image_shape(self, images.shape[1:])[2]
        variances, components = np.linalg.eigh(second_moments(images, (kh, kw)))  # (D,) and (D, D), D = KH*KW*C
        variances, components = variances[::-1], components[:, ::-1]  # the largest first
        # A component's sign is free. It is fixed here, so that every machine finds the same.
        largest = np.abs(components).argmax(axis=0)  # (D,)
        components = components * np.sign(components[largest, np.arange(len(components))])  # (D, D)
        kernels = components / np.sqrt(variances + self.epsilon)  # (D, D)
        return {"weight": np.concatenate([kernels, -kernels], axis=1).reshape(kh, kw, channels, -1)}


def second_moments(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mean of patch times patch transposed, over all patches of `size` in images (N, H, W, C): float64 (D, D)."""
    kh, kw = size
    n, height, width, channels = images.shape
    total = np.zeros((kh * kw * channels,) * 2)  # (D, D)
    for first in range(0, n, _BLOCK):
        block = images[first : first + _BLOCK].astype(np.float64)  # (B, H, W, C)
        taps = [block[:, a : height - kh + 1 + a, b : width - kw + 1 + b] for a in range(kh) for b in range(kw)]
        patches = np.concatenate(taps, axis=3).reshape(-1, len(total))  # (B*OH*OW, D)
        total += patches.T @ patches
    return total / (n * (height - kh + 1) * (width - kw + 1))
