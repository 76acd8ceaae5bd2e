"""Reference backend in plain NumPy. The other backends are tested against it; read it before them.

Each forward kernel is followed by its backward. Arrays are made only by functions of `self.xp`, so that CuPy runs this
code unchanged on a GPU, and computed in the precision of the inputs, so that tests check gradients in float64.

Shapes: N images, H by W pixels, C channels in; OH by OW pixels, K channels out; kernels (KH, KW, C, K); H' by W' pixels
with padding. dy is the gradient w.r.t. the output y, dx and d_weight those w.r.t. x and the weight.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cnn.backends.base import CORRECT, LOSS, OK, SCALE, Array, AugmentNumbers, Window
from cnn.rng import uniform

GELU_SLOPE = 0.7978845608028654  # sqrt(2 / pi)
GELU_CUBIC = 0.044715
_BLOCK = 64  # rows of each product in `dense_infer`


class ReferenceBackend:
    """Plain NumPy, one operation at a time."""

    name = "reference"
    precision = "float32"
    xp: Any = np
    augments_on_device = False

    def __init__(self) -> None:
        self.description = "reference: plain NumPy, written to be read"

    def for_thread(self) -> "ReferenceBackend":
        return self

    # Memory

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.zeros(shape, dtype)

    def asarray(self, values: Any) -> Array:
        return self.xp.asarray(values)

    def to_host(self, values: Array) -> np.ndarray:
        return np.array(values)

    def upload(self, *arrays: Array | None) -> list[Array]:
        return [None if array is None else self.asarray(array) for array in arrays]

    def free_bytes(self) -> int | None:
        return None

    def begin_pass(self, parameters: Array) -> None:
        pass

    def end_pass(self) -> None:
        pass

    def read_later(self, values: Array) -> Callable[[], np.ndarray]:
        """Begin to copy a small array to the host; the function that is returned waits for the copy and returns it."""
        copy = self.to_host(values)  # shape of values
        return lambda: copy

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
        self, x: Array, scale: Array, shift: Array, running_mean: Array, running_variance: Array, momentum: float,
        epsilon: float, kind: str,
    ) -> tuple[Array, Array, Array]:
        """Normalise by this batch's mean and biased variance. Returns y, mean (C,) and variance (C,).

        Moves the running statistics (C,) towards this batch's by `momentum`.
        """
        rows = x.reshape(-1, x.shape[-1])  # (M, C), M = N*H*W
        mean = rows.mean(axis=0)  # (C,)
        variance = ((rows - mean) ** 2).mean(axis=0)  # (C,)
        self._move_running(running_mean, running_variance, mean, variance, momentum, len(rows))
        return self.batch_norm_infer(x, scale, shift, mean, variance, epsilon, kind), mean, variance

    def _move_running(
        self, running_mean: Array, running_variance: Array, mean: Array, variance: Array, momentum: float, count: int
    ) -> None:
        """Move the running statistics towards those of `count` rows, (C,) each, where these are finite."""
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

    # Softmax and cross-entropy as one function, whose gradient w.r.t. the logits is p - target

    def softmax_cross_entropy(
        self, logits: Array, targets: Array, smoothing: float, class_weights: Array | None, denominator: int
    ) -> tuple[Array, Array, Array]:
        """The weighted sum of the rows' cross-entropies, divided by `denominator`, and its gradient w.r.t. the logits.

        `targets` are class indices (N,), or soft labels (N, K) whose rows sum to 1. A row's weight is its class's entry
        in `class_weights` (K,); with soft labels, the mean of the entries weighted by them. The third result is that of
        `count_correct`.
        """
        rows = self.xp.arange(len(targets))  # (N,)
        shifted = logits - logits.max(axis=1, keepdims=True)  # (N, K)
        log_p = shifted - self.xp.log(self.xp.exp(shifted).sum(axis=1, keepdims=True))  # (N, K)
        target = self.xp.full(logits.shape, smoothing / logits.shape[1], logits.dtype)  # (N, K)
        if targets.ndim == 2:
            target += (1.0 - smoothing) * targets.astype(logits.dtype)
        else:
            target[rows, targets] += 1.0 - smoothing
        row_weights = self.xp.full((len(targets), 1), 1.0 / denominator, logits.dtype)  # (N, 1)
        if class_weights is not None:
            weights = targets.astype(logits.dtype) @ class_weights if targets.ndim == 2 else class_weights[targets]
            row_weights *= weights[:, None]
        loss = -(row_weights * target * log_p).sum()  # ()
        gradient = row_weights * (self.xp.exp(log_p) - target)  # (N, K)
        return loss, gradient, self.count_correct(logits, targets)

    def count_correct(self, outputs: Array, targets: Array) -> Array:
        """The number of rows whose largest output (N, K) is that of the class, or of the class with most weight: ()."""
        true = targets if targets.ndim == 1 else targets.argmax(axis=1)  # (N,)
        return (outputs.argmax(axis=1) == true).sum()

    # Optimizers: weight decay applies to the first `decayed` entries; the gradient is multiplied by `outcome[SCALE]`.
    # `outcome` (4,) stays on the device: a step that is not finite, and all steps after it, change nothing.

    def judge_step(self, outcome: Array, loss: Array, correct: Array, gradient: Array, clip: float) -> None:
        """Set `outcome` for `loss` (), `correct` () and `gradient` (size,), whose norm is clipped to `clip` (0: never).

        `outcome[OK]` is left at 0, and set to 0 where the loss or the norm is not finite.
        """
        norm = math.sqrt(self.squared_norm(gradient))
        if not (self.xp.isfinite(loss) and math.isfinite(norm)):
            outcome[OK] = 0.0
        outcome[SCALE] = clip / norm if 0.0 < clip < norm else 1.0
        outcome[LOSS], outcome[CORRECT] = loss, correct

    def squared_norm(self, vector: Array) -> float:
        return float(vector.astype(np.float64) @ vector.astype(np.float64))

    def sgd_step(
        self, weights: Array, gradient: Array, velocity: Array, decayed: int, outcome: Array,
        lr: float, momentum: float, nesterov: bool, weight_decay: float,
    ) -> None:
        if not outcome[OK]:
            return
        g = gradient * float(outcome[SCALE])  # (size,)
        g[:decayed] += weight_decay * weights[:decayed]
        velocity *= momentum
        velocity += g
        weights -= lr * (g + momentum * velocity if nesterov else velocity)

    def adamw_step(
        self, weights: Array, gradient: Array, first: Array, second: Array, decayed: int, outcome: Array,
        lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int,
    ) -> None:
        """Loshchilov and Hutter (2019): decoupled weight decay; `step` counts from 1."""
        if not outcome[OK]:
            return
        g = gradient * float(outcome[SCALE])  # (size,)
        first *= beta1
        first += (1.0 - beta1) * g
        second *= beta2
        second += (1.0 - beta2) * g * g
        weights[:decayed] *= 1.0 - lr * weight_decay
        root = self.xp.sqrt(second / (1.0 - beta2**step))  # (size,)
        weights -= (lr / (1.0 - beta1**step)) * first / (root + epsilon)

    def average(self, average: Array, values: Array, rate: float, outcome: Array) -> None:
        """Move `average` (size,) towards `values` (size,) by the fraction `rate`."""
        if outcome[OK]:
            average += rate * (values - average)

    def copy(self, target: Array, values: Array, outcome: Array) -> None:
        """Set `target` (size,) to `values` (size,)."""
        if outcome[OK]:
            target[...] = values

    # Images

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

    def augment(
        self, images: Array, rows: Array, labels: Array, numbers: AugmentNumbers, mean: Array, std: Array,
        whole: bool = False,
    ) -> tuple[Array, Array]:
        raise NotImplementedError("images are augmented by resample and blend: see `augments_on_device`")


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


def _within(xp: Any, boxes: Array, height: int, width: int) -> Array:
    """Whether each pixel lies in its image's box (N, 4): bool (N, height, width)."""
    i, j = xp.arange(height)[:, None], xp.arange(width)  # (height, 1), (width,)
    top, bottom, left, right = (boxes[:, side, None, None] for side in range(4))  # (N, 1, 1) each
    return (i >= top) & (i < bottom) & (j >= left) & (j < right)


def _sigmoid(xp: Any, x: Array) -> Array:
    """1 / (1 + exp(-x)), computed by tanh, which does not overflow."""
    return 0.5 * (1.0 + xp.tanh(0.5 * x))


def _neighbours(xp: Any, positions: Array, size: int, dtype: Any) -> tuple[Array, Array, Array]:
    """The two pixels around each position, and its distance from the first, 0 to 1: (N, OH) or (N, OW) each."""
    first = xp.floor(positions).astype(np.int64)  # shape of positions
    return first, xp.minimum(first + 1, size - 1), (positions - first).astype(dtype)
