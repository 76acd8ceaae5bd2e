"""The reference backend with the roundings of the GPU's precisions, for comparisons of whole networks.

A network amplifies roundings: one that moves a feature across the kink of a ReLU switches its gradient on or off, and
batch norm over few pixels divides by small deviations. Compared with exact sums, a correct bf16 network may be off by a
third in its gradients. Compared with sums of the same rounded numbers, only the order of summing differs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from cnn.backends.base import Array, Window
from cnn.backends.reference import ReferenceBackend
from tests.cnn.backends.gpu.storage import to_bf16

# Methods that return feature maps, alone or first in a tuple.
_MAPS = (
    "max_pool", "max_pool_backward", "average_pool", "average_pool_backward", "global_max_pool_backward",
    "global_average_pool_backward", "batch_norm_train", "batch_norm_infer", "batch_norm_backward", "activate",
    "activate_backward", "add", "scale", "dropout", "flatten_backward", "resample", "blend",
)  # fmt: skip
_PLAIN = ReferenceBackend()


def bf16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 numbers, in float32."""
    return (to_bf16(np.ascontiguousarray(x)).astype(np.uint32) << 16).view(np.float32)


def tf32(x: np.ndarray) -> np.ndarray:
    """What remains of float32 numbers in the GPU's products in TF32: see `tf32_bits` in product.cuh."""
    larger = np.ascontiguousarray(x * np.float32(1 + 1 / 3072))  # shape of x
    return (larger.view(np.uint32) & 0xFFFFE000).view(np.float32)


class RoundedBackend(ReferenceBackend):
    """Plain NumPy, with operands of products and feature maps rounded as in `rounding`: 'tf32' or 'bf16'."""

    def __init__(self, rounding: str) -> None:
        super().__init__()
        self._maps = bf16 if rounding == "bf16" else _same

    def _product(self, *operands: Array) -> list[Array]:
        """The operands of a product: maps and kernels are rounded like maps, or vectors and their weights to TF32."""
        as_maps = self._maps is bf16 and operands[0].ndim == 4
        return [bf16(each) if as_maps else tf32(each) for each in operands]

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, before_norm: bool = False
    ) -> Array:
        return self._maps(_PLAIN.conv2d(*self._product(x, weight), bias, window))  # (N, OH, OW, K)

    def conv2d_backward(
        self, dy: Array, x: Array, weight: Array, window: Window,
        d_weight: Array, d_bias: Array | None, need_dx: bool,
    ) -> Array | None:  # fmt: skip
        dx = _PLAIN.conv2d_backward(*self._product(dy, x, weight), window, d_weight, None, need_dx)  # (N, H, W, C)
        if d_bias is not None:
            d_bias[...] = dy.sum(axis=(0, 1, 2))  # not a product: dy is not rounded to TF32
        return None if dx is None else self._maps(dx)

    def conv2d_packed(self, x: Array, packed: Any, kind: str) -> Array:
        weight, bias, window = packed
        y = _PLAIN.conv2d(*self._product(x, weight), bias, window)  # (N, OH, OW, K)
        return self._maps(_PLAIN.activate(kind, y))

    def dense(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return _PLAIN.dense(*self._product(x, weight), bias)  # (N, K)

    def dense_infer(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return self.dense(x, weight, bias)  # (N, K)

    def dense_backward(
        self, dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool
    ) -> Array | None:
        dx = _PLAIN.dense_backward(*self._product(dy, x, weight), d_weight, None, need_dx)  # (N, C)
        if d_bias is not None:
            d_bias[...] = dy.sum(axis=0)
        return dx


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _storing_maps(name: str) -> Callable[..., Any]:
    def method(self: RoundedBackend, *arguments: Any) -> Any:
        result = getattr(_PLAIN, name)(*arguments)
        first, *rest = result if isinstance(result, tuple) else (result,)
        first = self._maps(first) if first.ndim == 4 else first
        return (first, *rest) if rest else first

    return method


for _name in _MAPS:
    setattr(RoundedBackend, _name, _storing_maps(_name))
