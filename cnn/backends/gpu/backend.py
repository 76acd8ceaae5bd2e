"""The GPU backend: which kernel computes what, and in which precision.

Feature maps (N, H, W, C) are kept in bfloat16, float32 or, for checks of gradients, float64. Vectors (N, C), parameters
and their gradients are float32 or float64. All sums are float32 or float64.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from cnn.backends.base import Array, AugmentNumbers, MicroSums, StatisticsLayout, Window
from cnn.backends.gpu import (
    convolution,
    dense,
    elementwise,
    losses,
    memory,
    micro_batches,
    norm,
    optimizers,
    pooling,
    preprocess,
    readback,
)
from cnn.backends.gpu.arrays import ArrayBackend
from cnn.backends.gpu.graph import Captured

BF16 = np.dtype(np.uint16)  # NumPy has no bfloat16: its 16 bits are kept in integers


class GpuBackend(ArrayBackend):
    """Our kernels on the current CUDA device, in `precision`: 'float32', 'tf32' or 'bf16'."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        super().__init__()
        self._uploads = memory.Uploads()
        self._readback = readback.Readback()
        self._narrowed: tuple[Array, Array] | None = None  # all parameters, and their bfloat16 copy, during a pass
        self._ahead: tuple[Array, norm.Statistics] | None = None  # a convolution's output, and its statistics

    # Memory

    def to_host(self, values: Array) -> np.ndarray:
        if values.dtype == BF16:
            values = elementwise.convert(values, np.float32)  # shape of values
        return self.xp.asnumpy(values)

    def upload(self, *arrays: Array | None) -> list[Array]:
        return self._uploads.upload(*arrays)

    def read_later(self, values: Array) -> Callable[[], np.ndarray]:
        return self._readback.read_later(values)

    def free_bytes(self) -> int:
        return memory.free_bytes()

    def captured(self, run: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return Captured(run)

    def begin_pass(self, parameters: Array) -> None:
        self._ahead = None
        if self.precision == "bf16" and parameters.dtype == np.float32:
            self._narrowed = parameters, elementwise.convert(parameters, BF16)  # (size,) each

    def end_pass(self) -> None:
        self._narrowed = self._ahead = None

    def _math(self, dtype: np.dtype) -> str:
        """How products of arrays of this type are computed."""
        if dtype == BF16:
            return "BF16"
        return "PLAIN" if dtype == np.float64 or self.precision == "float32" else "TF32"

    def _maps_dtype(self, dtype: np.dtype) -> np.dtype:
        """The type of the feature maps of a network whose parameters have `dtype`."""
        return BF16 if self.precision == "bf16" and dtype == np.float32 else dtype

    def _like(self, weight: Array, dtype: np.dtype) -> Array:
        """The parameter `weight` in the type of feature maps; one of the pass's parameters was converted with all."""
        if weight.dtype == dtype:
            return weight
        if self._narrowed:
            flat, narrow = self._narrowed  # (size,) each
            first = (weight.data.ptr - flat.data.ptr) // flat.itemsize
            if first >= 0 and first + weight.size <= flat.size:
                return narrow[first : first + weight.size].reshape(weight.shape)
        return elementwise.convert(self.xp.ascontiguousarray(weight), dtype)

    # Convolution

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, before_norm: bool = False
    ) -> Array:
        y, statistics = convolution.forward(
            x, self._like(weight, x.dtype), bias, window, self._math(x.dtype), statistics=before_norm
        )
        self._ahead = None if statistics is None else (y, statistics)
        return y  # (N, OH, OW, K)

    def conv2d_backward(
        self, dy: Array, x: Array, weight: Array, window: Window,
        d_weight: Array, d_bias: Array | None, need_dx: bool,
    ) -> Array | None:
        math = self._math(x.dtype)
        convolution.weight_gradient(dy, x, window, math, d_weight)
        if d_bias is not None:
            norm.channel_sums(dy, d_bias)
        return convolution.input_gradient(dy, self._like(weight, x.dtype), window, x.shape, math) if need_dx else None

    def pack_conv2d(self, weight: Array, bias: Array, window: Window, in_shape: tuple[int, ...]) -> Any:
        return self._like(weight, self._maps_dtype(weight.dtype)), bias, window

    def conv2d_packed(self, x: Array, packed: Any, kind: str) -> Array:
        weight, bias, window = packed
        x = x if x.dtype == weight.dtype else elementwise.convert(self.xp.ascontiguousarray(x), weight.dtype)
        return convolution.forward(x, weight, bias, window, self._math(x.dtype), kind)[0]  # (N, OH, OW, K)

    # Dense, of vectors

    def dense(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return dense.forward(x, weight, bias, self._math(x.dtype))

    def dense_infer(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return self.dense(x, weight, bias)  # a row's bits do not depend on the other rows

    def dense_backward(
        self, dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool
    ) -> Array | None:
        return dense.backward(dy, x, weight, d_weight, d_bias, need_dx, self._math(x.dtype))

    # Pooling

    def max_pool(self, x: Array, window: Window) -> tuple[Array, Array]:
        return pooling.max_pool(x, window)

    def max_pool_backward(self, dy: Array, argmax: Array, in_shape: tuple[int, ...], window: Window) -> Array:
        return pooling.max_pool_backward(dy, argmax, in_shape, window)

    def average_pool(self, x: Array, window: Window) -> Array:
        return pooling.average_pool(x, window)

    def average_pool_backward(self, dy: Array, in_shape: tuple[int, ...], window: Window) -> Array:
        return pooling.average_pool_backward(dy, in_shape, window)

    def global_max_pool(self, x: Array) -> tuple[Array, Array]:
        return pooling.global_max_pool(x)

    def global_max_pool_backward(self, dy: Array, argmax: Array, in_shape: tuple[int, ...], dtype: Any) -> Array:
        return pooling.global_max_pool_backward(dy, argmax, in_shape, dtype)

    def global_average_pool(self, x: Array) -> Array:
        return pooling.global_average_pool(x)

    def global_average_pool_backward(self, dy: Array, in_shape: tuple[int, ...], dtype: Any) -> Array:
        return pooling.global_average_pool_backward(dy, in_shape, dtype)

    # Batch norm

    def batch_norm_train(
        self, x: Array, scale: Array, shift: Array, running_mean: Array, running_variance: Array,
        momentum: float | None, epsilon: float, kind: str,
    ) -> tuple[Array, Array, Array]:
        ahead, self._ahead = self._ahead, None
        statistics = ahead[1] if ahead and ahead[0] is x else norm.statistics(x)
        mean, variance = norm.merge(statistics, x.size // x.shape[-1], running_mean, running_variance, momentum)
        return norm.apply(x, scale, shift, mean, variance, epsilon, kind), mean, variance

    def batch_norm_infer(
        self, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str
    ) -> Array:
        return norm.apply(x, scale, shift, mean, variance, epsilon, kind)

    def batch_norm_backward(
        self, dy: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str,
        d_scale: Array, d_shift: Array,
    ) -> Array:
        return norm.backward(dy, x, scale, shift, mean, variance, epsilon, kind, d_scale, d_shift)

    # Elementwise

    def activate(self, kind: str, x: Array) -> Array:
        return elementwise.activate(kind, x)

    def activate_backward(self, kind: str, dy: Array, x: Array, y: Array) -> Array:
        return elementwise.activate_backward(kind, dy, x, y)

    def add(self, a: Array, b: Array, kind: str = "") -> Array:
        return elementwise.add(a, b, kind)

    def scale(self, x: Array, factor: float) -> Array:
        return elementwise.scale(x, factor)

    def dropout(self, x: Array, rate: float, key: int, rows: Array | None) -> Array:
        return elementwise.dropout(x, rate, key, rows)

    def flatten(self, x: Array) -> Array:
        flat = self.xp.ascontiguousarray(x).reshape(len(x), -1)  # (N, H*W*C)
        return elementwise.convert(flat, np.float32) if x.dtype == BF16 else flat

    def flatten_backward(self, dy: Array, in_shape: tuple[int, ...], dtype: Any) -> Array:
        dy = self.xp.ascontiguousarray(dy).reshape(in_shape)  # (N, H, W, C)
        return dy if dy.dtype == dtype else elementwise.convert(dy, dtype)

    def softmax(self, x: Array) -> Array:
        return elementwise.softmax(x)

    def softmax_backward(self, dy: Array, y: Array) -> Array:
        return elementwise.softmax_backward(dy, y)

    # Losses

    def softmax_cross_entropy(
        self, logits: Array, targets: Array, smoothing: float, class_weights: Array | None, denominator: int
    ) -> tuple[Array, Array, Array]:
        return losses.softmax_cross_entropy(logits, targets, smoothing, class_weights, denominator)

    def count_correct(self, outputs: Array, targets: Array) -> Array:
        return losses.count_correct(outputs, targets)

    # Micro-batches

    def merge_sums(self, first: MicroSums, second: MicroSums, layout: StatisticsLayout) -> MicroSums:
        return micro_batches.merge_sums(first, second, layout)

    def move_statistics(
        self, state: Array, statistics: Array, layout: StatisticsLayout, rows: int, outcome: Array
    ) -> None:
        micro_batches.move_statistics(state, statistics, layout, rows, outcome)

    # Optimizers

    def judge_step(self, outcome: Array, loss: Array, correct: Array, gradient: Array, clip: float) -> None:
        optimizers.judge_step(outcome, loss, correct, gradient, clip)

    def sgd_step(
        self, weights: Array, gradient: Array, velocity: Array, decayed: int, outcome: Array,
        lr: float, momentum: float, nesterov: bool, weight_decay: float,
    ) -> None:
        optimizers.sgd_step(weights, gradient, velocity, decayed, outcome, lr, momentum, nesterov, weight_decay)

    def adamw_step(
        self, weights: Array, gradient: Array, first: Array, second: Array, decayed: int, outcome: Array,
        lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int,
    ) -> None:
        optimizers.adamw_step(
            weights, gradient, first, second, decayed, outcome, lr, beta1, beta2, epsilon, weight_decay, step
        )

    def average(self, average: Array, values: Array, rate: float, outcome: Array) -> None:
        optimizers.average(average, values, rate, outcome)

    def copy(self, target: Array, values: Array, outcome: Array) -> None:
        optimizers.copy(target, values, outcome)

    # Images

    def resample(
        self, images: Array, ys: Array, xs: Array, holes: Array | None, mean: Array, std: Array,
        colours: Array | None = None,
    ) -> Array:
        return preprocess.resample(images, ys, xs, holes, mean, std, colours, self._maps_dtype(mean.dtype))

    def blend(self, x: Array, partners: Array, weights: Array, boxes: Array) -> Array:
        return preprocess.blend(x, partners, weights, boxes)

    def augment(
        self, images: Array, rows: Array, labels: Array, numbers: AugmentNumbers, mean: Array, std: Array,
        whole: bool = False,
    ) -> tuple[Array, Array]:
        dtype = self._maps_dtype(mean.dtype)
        return preprocess.augment(images, rows, labels, numbers, mean, std, dtype, whole)
