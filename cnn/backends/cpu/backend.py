"""The CPU backend: Numba kernels and BLAS for the operations in which a training step spends its time.

All others are inherited from the reference.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cnn.backends.base import HALVING, Array, KernelProgress, Window
from cnn.backends.cpu import (
    compiling,
    convolution,
    dense,
    elementwise,
    losses,
    memory,
    norm,
    norm_pool,
    optimizers,
    pooling,
    preprocess,
    processor,
)
from cnn.backends.cpu.team import get_team
from cnn.backends.cpu.workspace import Workspace
from cnn.backends.reference import ReferenceBackend
from logpose.common.cpus import available_cpus


class CpuBackend(ReferenceBackend):
    """Numba kernels on a team of `threads` threads, by default one per available CPU.

    BLAS is limited to one thread, since each thread of the team calls it for its slice. Raises DeviceError where the
    environment asks for vectors of a width that there is not (`processor.lanes`).
    """

    name = device_name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or available_cpus()
        processor.lanes()  # a wrong LOGPOSE_LANES is an error now, not in the first kernel
        threadpool_limits(1, user_api="blas")
        _keep_freed_memory()
        self.description = f"cpu: {self.threads} thread{'' if self.threads == 1 else 's'}"
        self._team = get_team(self.threads)
        self._work = Workspace(self._team)

    def for_thread(self) -> "CpuBackend":
        """Return a backend with one thread and scratch memory of its own."""
        return CpuBackend(threads=1)

    def prepare(
        self, rehearsal: Callable[[], object], progress: KernelProgress | None = None, processes: int | None = None
    ) -> None:
        compiling.prepare(rehearsal, progress, processes or self.threads)

    # Memory

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return memory.zeros(shape, dtype)

    # Convolution

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, before_norm: bool = False
    ) -> Array:
        return convolution.forward(np.ascontiguousarray(x), weight, bias, window, self._work)

    def conv2d_backward(
        self, dy: Array, x: Array, weight: Array, window: Window,
        d_weight: Array, d_bias: Array | None, need_dx: bool,
    ) -> Array | None:
        x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
        convolution.weight_gradient(dy, x, window, d_weight, self._work)
        if d_bias is not None:
            d_bias[...] = norm.channel_sums(dy, self._team)  # (K,)
        return convolution.input_gradient(dy, weight, window, x.shape, self._work) if need_dx else None

    def pack_conv2d(self, weight: Array, bias: Array, window: Window, in_shape: tuple[int, ...]) -> Any:
        return convolution.pack(weight, bias, window, in_shape, self._work)

    def conv2d_packed(self, x: Array, packed: Any, kind: str) -> Array:
        return convolution.forward_packed(np.ascontiguousarray(x), packed, kind, self._work)

    def conv2d_packed_max_pool(self, x: Array, packed: Any, kind: str, pool: Window) -> Array:
        if pool == HALVING and packed.tile and kind in ("", "relu"):
            return convolution.forward_packed(np.ascontiguousarray(x), packed, kind, self._work, pool=2)
        return super().conv2d_packed_max_pool(x, packed, kind, pool)

    # Dense

    def dense(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return dense.forward(x, weight, bias, self._team)

    def dense_infer(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return dense.infer(x, weight, bias, self._team)

    def dense_backward(
        self, dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool
    ) -> Array | None:
        return dense.backward(dy, x, weight, d_weight, d_bias, need_dx, self._team)

    # Batch norm

    def batch_norm_train(
        self, x: Array, scale: Array, shift: Array, running_mean: Array, running_variance: Array,
        momentum: float | None, epsilon: float, kind: str,
    ) -> tuple[Array, Array, Array]:
        y, mean, variance = norm.train(x, scale, shift, epsilon, kind, self._team)  # shape of x, (C,), (C,)
        self._move_running(running_mean, running_variance, mean, variance, momentum, x.size // x.shape[-1])
        return y, mean, variance

    def batch_norm_infer(
        self, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str
    ) -> Array:
        return norm.infer(x, scale, shift, mean, variance, epsilon, kind, self._team)

    def batch_norm_backward(
        self, dy: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str,
        d_scale: Array, d_shift: Array,
    ) -> Array:
        return norm.backward(
            dy, x, scale, shift, mean, variance, epsilon, kind, d_scale, d_shift, self._team
        )

    def batch_norm_pool_train(
        self, x: Array, scale: Array, shift: Array, running_mean: Array, running_variance: Array,
        momentum: float | None, epsilon: float, kind: str,
    ) -> tuple[Array, Array, Array, Array]:
        running = running_mean, running_variance
        if not norm_pool.fits(x):
            return super().batch_norm_pool_train(x, scale, shift, *running, momentum, epsilon, kind)
        x = np.ascontiguousarray(x)
        mean, variance = (values.astype(x.dtype) for values in norm.statistics(x, self._team))  # (C,) each
        self._move_running(*running, mean, variance, momentum, x.size // x.shape[-1])
        y, winners = norm_pool.forward(x, scale, shift, mean, variance, epsilon, kind, self._team)
        return y, winners, mean, variance

    def batch_norm_pool_backward(
        self, dy: Array, winners: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array,
        epsilon: float, kind: str, d_scale: Array, d_shift: Array,
    ) -> Array:
        more = scale, shift, mean, variance, epsilon, kind, d_scale, d_shift
        if not norm_pool.fits(x):
            return super().batch_norm_pool_backward(dy, winners, x, *more)
        return norm_pool.backward(dy, winners, np.ascontiguousarray(x), *more, self._team)

    # Elementwise

    def activate(self, kind: str, x: Array) -> Array:
        return elementwise.activate(kind, x, self._team)

    def activate_backward(self, kind: str, dy: Array, x: Array, y: Array) -> Array:
        return elementwise.activate_backward(kind, dy, x, y, self._team)

    def add(self, a: Array, b: Array, kind: str = "") -> Array:
        return elementwise.add(a, b, kind, self._team)

    # Pooling

    def max_pool(self, x: Array, window: Window) -> tuple[Array, Array]:
        return pooling.max_pool(x, window, self._team)

    def max_pool_infer(self, x: Array, window: Window) -> Array:
        return pooling.max_pool_infer(x, window, self._team)

    def max_pool_backward(self, dy: Array, argmax: Array, in_shape: tuple[int, ...], window: Window) -> Array:
        return pooling.max_pool_backward(dy, argmax, in_shape, window, self._team)

    def average_pool(self, x: Array, window: Window) -> Array:
        return pooling.average_pool(x, window, self._team)

    def average_pool_backward(self, dy: Array, in_shape: tuple[int, ...], window: Window) -> Array:
        return pooling.average_pool_backward(dy, in_shape, window, self._team)

    def global_max_pool(self, x: Array) -> tuple[Array, Array]:
        y, argmax = pooling.max_pool(x, pooling.whole_image(x.shape), self._team)
        return y[:, 0, 0], argmax

    def global_max_pool_backward(self, dy: Array, argmax: Array, in_shape: tuple[int, ...], dtype: Any) -> Array:
        window = pooling.whole_image(in_shape)
        return pooling.max_pool_backward(dy[:, None, None], argmax, in_shape, window, self._team)

    # Losses

    def softmax_cross_entropy(
        self, logits: Array, targets: Array, smoothing: float, class_weights: Array | None, denominator: int
    ) -> tuple[Array, Array, Array]:
        loss, gradient = losses.softmax_cross_entropy(
            logits, targets, smoothing, class_weights, denominator, self._team
        )
        return loss, gradient, self.count_correct(logits, targets)

    # Micro-batches

    def _accumulate(self, total: Array, values: Array) -> None:
        elementwise.add(total, values, "", self._team, out=total)

    # Optimizers

    def squared_norm(self, vector: Array) -> float:
        return optimizers.squared_norm(vector, self._team)

    def sgd_step(
        self, weights: Array, gradient: Array, velocity: Array, decayed: int, outcome: Array,
        lr: float, momentum: float, nesterov: bool, weight_decay: float,
    ) -> None:
        optimizers.sgd_step(
            weights, gradient, velocity, decayed, outcome, lr, momentum, nesterov, weight_decay, self._team
        )

    def adamw_step(
        self, weights: Array, gradient: Array, first: Array, second: Array, decayed: int, outcome: Array,
        lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int,
    ) -> None:
        optimizers.adamw_step(
            weights, gradient, first, second, decayed, outcome, lr, beta1, beta2, epsilon, weight_decay, step,
            self._team,
        )

    # Images

    def resample(
        self, images: Array, ys: Array, xs: Array, holes: Array | None, mean: Array, std: Array,
        colours: Array | None = None,
    ) -> Array:
        return preprocess.resample(images, ys, xs, holes, mean, std, colours, self._team)

    def blend(self, x: Array, partners: Array, weights: Array, boxes: Array) -> Array:
        return preprocess.blend(np.ascontiguousarray(x), partners, weights, boxes, self._team)


def _keep_freed_memory() -> None:
    """Have glibc reuse freed arrays: fetching zeroed pages from the kernel in every step is slow."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(-4, 0)  # M_MMAP_MAX: allocate large arrays on the heap too
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never return freed heap to the kernel
