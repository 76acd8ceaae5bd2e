"""Whitening convolution, whose kernels are computed from images, not trained (Page, 2019; Jordan, 2024).

Neighbouring pixels are strongly correlated. Whitening makes the values of small patches uncorrelated and of equal
variance, which the next layers then need not learn.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from cnn.arena import Shape
from cnn.errors import ShapeError
from cnn.layers.base import Specs, image_shape
from cnn.layers.convolution import Conv2D

_BLOCK = 64  # images at a time, to bound the memory of their patches


@dataclass(frozen=True)
class Whitening(Conv2D):
    """The principal components of `kernel`-sized patches, scaled to variance 1, and their negatives.

    (N, H, W, C) -> (N, OH, OW, filters), where `filters` must be 2 * KH * KW * C. The kernels are random until
    `parameters_from_images` computes them, and never trained. The bias is trained until the fraction
    `bias_trained_until` of the training's steps. `epsilon` is added to the variances, to bound the scaling.
    """

    kernel: int | tuple[int, int] = 2
    padding: int | tuple[int, int] = 0
    bias_trained_until: float = 1.0
    epsilon: float = 5e-4

    def specs(self, in_shape: Shape) -> Specs:
        needed = 2 * math.prod(self.window.size) * image_shape(self, in_shape)[2]
        if self.filters != needed:
            raise ShapeError(f"{self} needs {needed} filters for images of {in_shape[2]} channels; give it as many")
        out_shape, (weight, *bias), state = super().specs(in_shape)
        parameters = [replace(weight, decay=False, trained_until=0.0)]
        parameters += [replace(spec, decay=True, trained_until=self.bias_trained_until) for spec in bias]
        return Specs(out_shape, tuple(parameters), state)

    def parameters_from_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute `weight`, float64 (KH, KW, C, filters), to whiten the patches of `images` (N, H, W, C)."""
        kh, kw = self.window.size
        channels = image_shape(self, images.shape[1:])[2]
        variances, components = np.linalg.eigh(second_moments(images, (kh, kw)))  # (D,) and (D, D), D = KH*KW*C
        variances, components = variances[::-1], components[:, ::-1]  # the largest first
        # A component's sign is arbitrary; make its largest entry positive, so that all machines compute the same.
        largest = np.abs(components).argmax(axis=0)  # (D,)
        components = components * np.sign(components[largest, np.arange(len(components))])  # (D, D)
        kernels = components / np.sqrt(variances + self.epsilon)  # (D, D)
        return {"weight": np.concatenate([kernels, -kernels], axis=1).reshape(kh, kw, channels, -1)}


def second_moments(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mean of patch @ patch.T over all patches (D, 1) of `size` in images (N, H, W, C): float64 (D, D)."""
    kh, kw = size
    n, height, width, channels = images.shape
    total = np.zeros((kh * kw * channels,) * 2)  # (D, D)
    for first in range(0, n, _BLOCK):
        block = images[first : first + _BLOCK].astype(np.float64)  # (B, H, W, C)
        taps = [block[:, a : height - kh + 1 + a, b : width - kw + 1 + b] for a in range(kh) for b in range(kw)]
        patches = np.concatenate(taps, axis=3).reshape(-1, len(total))  # (B*OH*OW, D)
        total += patches.T @ patches
    return total / (n * (height - kh + 1) * (width - kw + 1))
