"""Augmentation and normalisation of images in plain NumPy. N images of H by W pixels and C channels."""

from typing import Any

import numpy as np

from cnn.backends.base import Array


class ImageKernels:
    """Resampling and blending of images, with arrays of the module `xp`."""

    xp: Any

    def resample(
        self, images: Array, ys: Array, xs: Array, holes: Array | None, mean: Array, std: Array,
        colours: Array | None = None,
    ) -> Array:
        """Crop, flip, shift, normalise and recolour in one pass: uint8 (N, H, W, C) -> mean's dtype (N, OH, OW, C).

        Output pixel (i, j) of image n is interpolated bilinearly at row `ys[n, i]` and column `xs[n, j]`, which lie
        inside the image. Each image's matrix in `colours` (N, C, C + 1) then multiplies its normalised pixels, with a 1
        appended to their channels. Last, `holes` (N, 4) are set to 0, the normalised mean colour. A hole or box is
        given as its top, bottom, left and right.
        """
        xp = self.xp
        y0, y1, fy = _neighbours(xp, ys, images.shape[1], mean.dtype)  # (N, OH) each
        x0, x1, fx = _neighbours(xp, xs, images.shape[2], mean.dtype)  # (N, OW) each
        n = xp.arange(len(images))[:, None, None]  # (N, 1, 1)

        def row(y: Array) -> Array:
            left, right = images[n, y[:, :, None], x0[:, None]], images[n, y[:, :, None], x1[:, None]]
            weight = fx[:, None, :, None]  # (N, 1, OW, 1)
            return left * (1 - weight) + right * weight  # (N, OH, OW, C)

        weight = fy[:, :, None, None]  # (N, OH, 1, 1)
        out = (row(y0) * (1 - weight) + row(y1) * weight - mean) / std  # (N, OH, OW, C)
        if colours is not None:
            matrices = colours.astype(mean.dtype)[:, None]  # (N, 1, C, C + 1)
            out = out @ matrices[..., :-1].swapaxes(2, 3) + matrices[:, :, None, :, -1]  # (N, OH, OW, C)
        if holes is not None:
            out[_within(xp, holes, *out.shape[1:3])] = 0
        return out

    def blend(self, x: Array, partners: Array, weights: Array, boxes: Array) -> Array:
        """Blend image n of x (N, H, W, C) with image `partners[n]`, into a new array.

        Inside box n of `boxes` (N, 4), image n has the weight `weights[n]` and its partner 1 - `weights[n]`. Outside,
        the image is unchanged.
        """
        own = weights.astype(x.dtype)[:, None, None, None]  # (N, 1, 1, 1)
        inside = _within(self.xp, boxes, *x.shape[1:3])[..., None]  # (N, H, W, 1)
        return self.xp.where(inside, own * x + (1 - own) * x[partners], x)  # (N, H, W, C)


def _within(xp: Any, boxes: Array, height: int, width: int) -> Array:
    """Whether each pixel lies in its image's box (N, 4): bool (N, height, width)."""
    i, j = xp.arange(height)[:, None], xp.arange(width)  # (height, 1), (width,)
    top, bottom, left, right = (boxes[:, side, None, None] for side in range(4))  # (N, 1, 1) each
    return (i >= top) & (i < bottom) & (j >= left) & (j < right)


def _neighbours(xp: Any, positions: Array, size: int, dtype: Any) -> tuple[Array, Array, Array]:
    """The two pixels around each position, and its distance from the first, 0 to 1: (N, OH) or (N, OW) each."""
    first = xp.floor(positions).astype(np.int64)  # shape of positions
    return first, xp.minimum(first + 1, size - 1), (positions - first).astype(dtype)
