"""The kernels of layers in plain NumPy; each forward kernel is followed by its backward.

Shapes: N images, H by W pixels, C channels in; OH by OW pixels, K channels out; kernels (KH, KW, C, K); H' by W' pixels
with padding. dy is the gradient w.r.t. the output y, dx and d_weight those w.r.t. x and the weight.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cnn.backends.base import HALVING, Array, Window
from cnn.rng import uniform

GELU_SLOPE = 0.7978845608028654  # sqrt(2 / pi)
GELU_CUBIC = 0.044715
_BLOCK = 64  # rows of each product in `dense_infer`


class LayerKernels:
    """Convolution, dense, pooling, batch norm and elementwise kernels, with arrays of the module `xp`."""

    xp: Any

    # Convolution: y[n, i, j, k] = bias[k] + sum over (a, b, c) of x_padded[n, i*s + a, j*s + b, c] * w[a, b, c, k]

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, before_norm: bool = False
    ) -> Array:
        """`before_norm` says that the next call is `batch_norm_train` of the result; a backend may compute ahead."""
        padded = _pad(self.xp, x, window, 0.0)  # (N, H', W', C)
        out_h, out_w = window.out_size(*x.shape[1:3])
        y = self.xp.zeros((x.shape[0], out_h, out_w, weight.shape[3]), x.dtype)  # (N, OH, OW, K)
        for a, b, tap in _taps(window, out_h, out_w):
            y += padded[tap] @ weight[a, b]  # (N, OH, OW, C) @ (C, K)
        if bias is not None:
            y += bias  # (K,)
        return y

    def conv2d_backward(
        self, dy: Array, x: Array, weight: Array, window: Window,
        d_weight: Array, d_bias: Array | None, need_dx: bool,
    ) -> Array | None:
        channels, filters = weight.shape[2:]
        flat_dy = dy.reshape(-1, filters)  # (N*OH*OW, K)
        padded = _pad(self.xp, x, window, 0.0)  # (N, H', W', C)
        d_padded = self.xp.zeros_like(padded) if need_dx else None  # (N, H', W', C)
        for a, b, tap in _taps(window, *dy.shape[1:3]):
            d_weight[a, b] = padded[tap].reshape(-1, channels).T @ flat_dy  # (C, K)
            if d_padded is not None:
                d_padded[tap] += dy @ weight[a, b].T  # (N, OH, OW, C)
        if d_bias is not None:
            d_bias[...] = flat_dy.sum(axis=0)  # (K,)
        return None if d_padded is None else _crop(d_padded, x.shape, window)  # (N, H, W, C)

    def pack_conv2d(self, weight: Array, bias: Array, window: Window, in_shape: tuple[int, ...]) -> Any:
        """Convert constant kernels to the layout of `conv2d_packed`, for images of `in_shape` (H, W, C)."""
        return weight, bias, window

    def conv2d_packed(self, x: Array, packed: Any, kind: str) -> Array:
        """A convolution by packed kernels, and the activation `kind` after it."""
        return self.activate(kind, self.conv2d(x, *packed))  # (N, OH, OW, K)

    def conv2d_packed_max_pool(self, x: Array, packed: Any, kind: str, pool: Window) -> Array:
        """As `conv2d_packed`, and a max pool after the activation."""
        return self.max_pool_infer(self.conv2d_packed(x, packed, kind), pool)  # (N, PH, PW, K)

    # Dense: y = x @ w + bias, over the last axis

    def dense(self, x: Array, weight: Array, bias: Array | None) -> Array:
        y = x @ weight  # (N, C) @ (C, K)
        if bias is not None:
            y += bias  # (K,)
        return y  # (N, K)

    def dense_infer(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """As `dense`, but a row's bits do not depend on the other rows, since all products have the same shape."""
        y = self.xp.empty((len(x), weight.shape[1]), x.dtype)  # (N, K)
        for first in range(0, len(x), _BLOCK):
            rows = x[first : first + _BLOCK]  # (R, C), R <= _BLOCK
            block = self.xp.zeros((_BLOCK, x.shape[1]), x.dtype)  # (_BLOCK, C)
            block[: len(rows)] = rows
            y[first : first + _BLOCK] = self.dense(block, weight, bias)[: len(rows)]
        return y

    def dense_backward(
        self, dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool
    ) -> Array | None:
        d_weight[...] = x.T @ dy  # (C, N) @ (N, K)
        if d_bias is not None:
            d_bias[...] = dy.sum(axis=0)  # (K,)
        return dy @ weight.T if need_dx else None  # (N, C)

    # Pooling

    def max_pool(self, x: Array, window: Window) -> tuple[Array, Array]:
        """The largest value in each window, and its index in the window; the first of equals."""
        padded = _pad(self.xp, x, window, -np.inf)  # (N, H', W', C)
        out_h, out_w = window.out_size(*x.shape[1:3])
        y = self.xp.full((x.shape[0], out_h, out_w, x.shape[3]), -np.inf, x.dtype)  # (N, OH, OW, C)
        argmax = self.xp.zeros(y.shape, np.int32)  # (N, OH, OW, C)
        for a, b, tap in _taps(window, out_h, out_w):
            values = padded[tap]  # (N, OH, OW, C)
            larger = (values > y) | self.xp.isnan(values)  # (N, OH, OW, C); NaN is propagated
            y = self.xp.where(larger, values, y)  # (N, OH, OW, C)
            argmax = self.xp.where(larger, np.int32(a * window.size[1] + b), argmax)  # (N, OH, OW, C)
        return y, argmax

    def max_pool_infer(self, x: Array, window: Window) -> Array:
        """The largest value in each window alone."""
        return self.max_pool(x, window)[0]  # (N, OH, OW, C)

    def max_pool_backward(self, dy: Array, argmax: Array, in_shape: tuple[int, ...], window: Window) -> Array:
        d_padded = _pad(self.xp, self.xp.zeros(in_shape, dy.dtype), window, 0.0)  # (N, H', W', C)
        for a, b, tap in _taps(window, *dy.shape[1:3]):
            d_padded[tap] += dy * (argmax == a * window.size[1] + b)  # (N, OH, OW, C)
        return _crop(d_padded, in_shape, window)  # (N, H, W, C)

    def average_pool(self, x: Array, window: Window) -> Array:
        """The mean of each window; padding counts as zeros."""
        padded = _pad(self.xp, x, window, 0.0)  # (N, H', W', C)
        taps = _taps(window, *window.out_size(*x.shape[1:3]))
        return sum(padded[tap] for _, _, tap in taps) / math.prod(window.size)  # (N, OH, OW, C)

    def average_pool_backward(self, dy: Array, in_shape: tuple[int, ...], window: Window) -> Array:
        d_padded = _pad(self.xp, self.xp.zeros(in_shape, dy.dtype), window, 0.0)  # (N, H', W', C)
        each = dy / math.prod(window.size)  # (N, OH, OW, C)
        for _, _, tap in _taps(window, *dy.shape[1:3]):
            d_padded[tap] += each  # (N, OH, OW, C)
        return _crop(d_padded, in_shape, window)  # (N, H, W, C)

    def global_max_pool(self, x: Array) -> tuple[Array, Array]:
        """Each channel's largest value over the image, and its pixel's index."""
        pixels = x.reshape(len(x), -1, x.shape[3])  # (N, H*W, C)
        return pixels.max(axis=1), pixels.argmax(axis=1)  # (N, C) each

    def global_max_pool_backward(self, dy: Array, argmax: Array, in_shape: tuple[int, ...], dtype: Any) -> Array:
        """`dtype` is that of the feature maps, which have the shape `in_shape` (N, H, W, C)."""
        n, height, width, channels = in_shape
        dx = self.xp.zeros((n, height * width, channels), dy.dtype)  # (N, H*W, C)
        dx[self.xp.arange(n)[:, None], argmax, self.xp.arange(channels)] = dy
        return dx.reshape(in_shape)  # (N, H, W, C)

    def global_average_pool(self, x: Array) -> Array:
        return x.mean(axis=(1, 2))  # (N, C)

    def global_average_pool_backward(self, dy: Array, in_shape: tuple[int, ...], dtype: Any) -> Array:
        each = dy[:, None, None] / (in_shape[1] * in_shape[2])  # (N, 1, 1, C)
        return self.xp.broadcast_to(each, in_shape).copy()  # (N, H, W, C)

    # Batch norm (Ioffe and Szegedy, 2015) and the activation `kind`, per channel:
    # y = activation(z) with z = scale * x_hat + shift, x_hat = (x - mean) / sqrt(variance + epsilon)

    def batch_norm_train(
        self, x: Array, scale: Array, shift: Array, running_mean: Array, running_variance: Array,
        momentum: float | None, epsilon: float, kind: str,
    ) -> tuple[Array, Array, Array]:
        """Normalise by this batch's mean and biased variance. Returns y, mean (C,) and variance (C,).

        Moves the running statistics (C,) towards this batch's by `momentum`; without one, sets them to this batch's
        mean and biased variance, which may then be what is returned.
        """
        rows = x.reshape(-1, x.shape[-1])  # (M, C), M = N*H*W
        mean = rows.mean(axis=0)  # (C,)
        variance = ((rows - mean) ** 2).mean(axis=0)  # (C,)
        self._move_running(running_mean, running_variance, mean, variance, momentum, len(rows))
        return self.batch_norm_infer(x, scale, shift, mean, variance, epsilon, kind), mean, variance

    def _move_running(
        self, running_mean: Array, running_variance: Array, mean: Array, variance: Array, momentum: float | None,
        count: int,
    ) -> None:
        """Move the running statistics towards those of `count` rows, (C,) each, where these are finite.

        Without `momentum`, set them to these.
        """
        if momentum is None:
            running_mean[...], running_variance[...] = mean, variance
            return
        # The running variance is the unbiased estimate, since it is applied to images outside of the batch.
        unbiased = variance * (count / max(count - 1, 1))  # (C,)
        finite = self.xp.isfinite(mean) & self.xp.isfinite(variance)  # (C,); a diverged step is not applied
        for running, new in ((running_mean, mean), (running_variance, unbiased)):
            running += self.xp.where(finite, momentum * (new - running), 0)  # (C,)

    def batch_norm_infer(
        self, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str
    ) -> Array:
        z = (x - mean) * (scale / self.xp.sqrt(variance + epsilon)) + shift  # (N, H, W, C)
        return self.activate(kind, z)

    def batch_norm_backward(
        self, dy: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str,
        d_scale: Array, d_shift: Array,
    ) -> Array:
        """The gradient w.r.t. x, through the batch's mean and variance too. z is recomputed from x."""
        rows_dy = dy.reshape(-1, x.shape[-1])  # (M, C)
        inverse = 1.0 / self.xp.sqrt(variance + epsilon)  # (C,)
        x_hat = (x.reshape(rows_dy.shape) - mean) * inverse  # (M, C)
        z = scale * x_hat + shift  # (M, C)
        dz = self.activate_backward(kind, rows_dy, z, self.activate(kind, z))  # (M, C)
        sum_dz = dz.sum(axis=0)  # (C,)
        sum_dz_x_hat = (dz * x_hat).sum(axis=0)  # (C,)
        d_scale[...] = sum_dz_x_hat
        d_shift[...] = sum_dz
        dx = (scale * inverse) * (dz - sum_dz / len(dz) - x_hat * (sum_dz_x_hat / len(dz)))  # (M, C)
        return dx.reshape(x.shape)  # (N, H, W, C)

    # Batch norm, its activation and then a max pool of 2x2 pixels: one pass where the backend has one

    def batch_norm_pool_train(
        self, x: Array, scale: Array, shift: Array, running_mean: Array, running_variance: Array,
        momentum: float | None, epsilon: float, kind: str,
    ) -> tuple[Array, Array, Array, Array]:
        """Returns y (N, PH, PW, C), the maxima's indices, mean (C,) and variance (C,)."""
        y, mean, variance = self.batch_norm_train(
            x, scale, shift, running_mean, running_variance, momentum, epsilon, kind
        )
        return *self.max_pool(y, HALVING), mean, variance

    def batch_norm_pool_backward(
        self, dy: Array, winners: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array,
        epsilon: float, kind: str, d_scale: Array, d_shift: Array,
    ) -> Array:
        """The gradient w.r.t. x (N, H, W, C), from dy (N, PH, PW, C)."""
        dy = self.max_pool_backward(dy, winners, x.shape, HALVING)  # (N, H, W, C)
        return self.batch_norm_backward(dy, x, scale, shift, mean, variance, epsilon, kind, d_scale, d_shift)

    # Elementwise

    def activate(self, kind: str, x: Array) -> Array:
        xp = self.xp
        match kind:
            case "":
                return x
            case "relu":
                return xp.maximum(x, 0)
            case "sigmoid":
                return _sigmoid(xp, x)
            case "tanh":
                return xp.tanh(x)
            case "silu":
                return x * _sigmoid(xp, x)
            case "gelu":  # the tanh approximation (Hendrycks and Gimpel, 2016)
                return 0.5 * x * (1.0 + xp.tanh(GELU_SLOPE * (x + GELU_CUBIC * x**3)))
        raise ValueError(f"unknown activation {kind!r}")

    def activate_backward(self, kind: str, dy: Array, x: Array, y: Array) -> Array:
        """`x` is the layer's input and `y` its output; each kind uses one of the two."""
        xp = self.xp
        match kind:
            case "":
                return dy
            case "relu":
                return dy * (y > 0)
            case "sigmoid":
                return dy * y * (1.0 - y)
            case "tanh":
                return dy * (1.0 - y * y)
            case "silu":
                gate = _sigmoid(xp, x)
                return dy * gate * (1.0 + x * (1.0 - gate))
            case "gelu":
                inner = xp.tanh(GELU_SLOPE * (x + GELU_CUBIC * x**3))
                slope = GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * x * x)
                return dy * (0.5 * (1.0 + inner) + 0.5 * x * (1.0 - inner * inner) * slope)
        raise ValueError(f"unknown activation {kind!r}")

    def add(self, a: Array, b: Array, kind: str = "") -> Array:
        return self.activate(kind, a + b)

    def scale(self, x: Array, factor: float) -> Array:
        return x * factor  # shape of x

    def dropout(self, x: Array, rate: float, key: int, rows: Array | None) -> Array:
        """Zero each value with probability `rate`, and scale the others by 1 / (1 - rate); the backward pass too.

        The draws are functions of `key`, of the row numbers `rows` (N,), 0 to N - 1 if None, and of the position.
        """
        rows = self.xp.arange(len(x)) if rows is None else rows  # (N,)
        draws = uniform(key, rows, math.prod(x.shape[1:]), self.xp).reshape(x.shape)  # shape of x
        mask = (draws >= rate).astype(x.dtype) / x.dtype.type(1.0 - rate)  # shape of x
        return x * mask  # shape of x

    def flatten(self, x: Array) -> Array:
        return x.reshape(len(x), -1)  # (N, H*W*C)

    def flatten_backward(self, dy: Array, in_shape: tuple[int, ...], dtype: Any) -> Array:
        return dy.reshape(in_shape)  # (N, H, W, C)

    def softmax(self, x: Array) -> Array:
        """Over the last axis; subtracting the maximum first keeps the exponentials from overflowing."""
        powers = self.xp.exp(x - x.max(axis=-1, keepdims=True))  # (N, K)
        return powers / powers.sum(axis=-1, keepdims=True)  # (N, K)

    def softmax_backward(self, dy: Array, y: Array) -> Array:
        return y * (dy - (dy * y).sum(axis=-1, keepdims=True))  # (N, K)


def _pad(xp: Any, x: Array, window: Window, value: float) -> Array:
    """x (N, H, W, C) padded with `value` as the window says: (N, H', W', C)."""
    if not (window.top or window.bottom or window.left or window.right):
        return x
    margins = ((0, 0), (window.top, window.bottom), (window.left, window.right), (0, 0))
    return xp.pad(x, margins, constant_values=value)


def _crop(padded: Array, shape: tuple[int, ...], window: Window) -> Array:
    """The inverse of `_pad`: (N, H, W, C)."""
    return padded[:, window.top : window.top + shape[1], window.left : window.left + shape[2]]


def _taps(window: Window, out_h: int, out_w: int) -> Iterator[tuple[int, int, tuple[slice, slice, slice]]]:
    """Each position (a, b) in the window, a tap, and the slice of padded images under it: one pixel per output."""
    down, right = window.stride
    for a in range(window.size[0]):
        for b in range(window.size[1]):
            rows = slice(a, a + (out_h - 1) * down + 1, down)
            columns = slice(b, b + (out_w - 1) * right + 1, right)
            yield a, b, (slice(None), rows, columns)


def _sigmoid(xp: Any, x: Array) -> Array:
    """1 / (1 + exp(-x)), computed by tanh, which does not overflow."""
    return 0.5 * (1.0 + xp.tanh(0.5 * x))
