"""Fast inference for fixed weights: batch norm, activations and max pools are folded into the convolutions before them.

Kernels are converted to the backend's fastest layout once, not for every batch.
"""

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from cnn.arena import Shape, Tree
from cnn.backends.base import Array, Backend, Window
from cnn.layers import BatchNorm, Conv2D, Dense, Layer, MaxPool, Residual, Run, Sequential, chain
from cnn.layers.activations import Activation
from cnn.network import Network, foreign_layer

# One layer or several: (backend, input (N, ...)) -> output (N, ...).
_Step: TypeAlias = Callable[[Backend, Array], Array]


class FoldedNetwork:
    """A copy of `network` for inference, which later changes of its weights do not affect.

    On the CPU a row's outputs are bitwise independent of the batch, its position in it and the number of threads.
    """

    def __init__(self, network: Network) -> None:
        self._steps = _prepare(
            network.layer, network.parameters.tree, network.state.tree, network.in_shape, network.backend
        )
        self._may_capture = foreign_layer(network.layer) is None  # a user's own may do anything
        self._run = self._bind(network.backend)

    def __call__(self, x: Array) -> Array:
        """Return outputs (N, *out_shape) for x (N, *in_shape), equal to those of `Network.infer` up to rounding."""
        return self._run(x)

    def on(self, backend: Backend) -> "FoldedNetwork":
        """Return the same network on another backend of the same device; the prepared arrays are shared."""
        other = copy(self)
        other._run = self._bind(backend)
        return other

    def _bind(self, backend: Backend) -> Callable[[Array], Array]:
        run = partial(self._steps, backend)
        return backend.captured(run) if self._may_capture else run


def _prepare(layer: Layer, p: Tree, s: Tree, in_shape: Shape, backend: Backend) -> _Step:
    match layer:
        case Sequential():
            return _compose(_prepare_sequence(layer, p, s, in_shape, backend))
        case Residual():
            body, shortcut = (
                _prepare(branch, p.get(name, {}), s.get(name, {}), in_shape, backend)
                for name, branch in (("body", layer.body), ("shortcut", layer.shortcut))
            )
            return lambda on, x: on.add(body(on, x), shortcut(on, x), layer.activation)
        case Conv2D():
            return _prepare(chain(conv=layer), {"conv": p}, {}, in_shape, backend)
        case Dense():
            return lambda on, x: on.dense_infer(x, p["weight"], p.get("bias"))
    return lambda on, x: layer.forward(Run(on, training=False), p, s, x)[0]


def _prepare_sequence(sequence: Sequential, p: Tree, s: Tree, in_shape: Shape, backend: Backend) -> list[_Step]:
    """The steps of a sequence, in which a convolution absorbs batch norm, activation and max pool after it."""
    steps: list[_Step] = []
    rest = list(_flatten(sequence, p, s))
    while rest:
        layer, p, s = rest.pop(0)
        if isinstance(layer, Conv2D):
            kind, weight = "", p["weight"]  # (KH, KW, C, K)
            bias: Array = p.get("bias", backend.zeros((layer.filters,), weight.dtype))  # (K,)
            if rest and isinstance(norm := rest[0][0], BatchNorm):
                kind = norm.activation
                weight, bias = _fold(*rest.pop(0), weight, bias, backend.xp)
            if rest and not kind and isinstance(activation := rest[0][0], Activation):
                kind = activation.kind
                del rest[0]
            packed = backend.pack_conv2d(weight.copy(), bias.copy(), layer.window, in_shape)
            if rest and isinstance(pool := rest[0][0], MaxPool):
                del rest[0]
                in_shape, layer = layer.specs(in_shape).out_shape, pool
                steps.append(partial(_convolve_and_pool, packed, kind, pool.window))
            else:
                steps.append(partial(_convolve, packed, kind))
        else:
            steps.append(_prepare(layer, p, s, in_shape, backend))
        in_shape = layer.specs(in_shape).out_shape
    return steps


def _flatten(sequence: Sequential, p: Tree, s: Tree) -> Iterator[tuple[Any, Tree, Tree]]:
    """The layers of nested sequences in order, with their parameters and state."""
    for name, layer in sequence.layers:
        inner = p.get(name, {}), s.get(name, {})
        if isinstance(layer, Sequential):
            yield from _flatten(layer, *inner)
        else:
            yield layer, *inner


def _convolve(packed: Any, kind: str, on: Backend, x: Array) -> Array:
    return on.conv2d_packed(x, packed, kind)


def _convolve_and_pool(packed: Any, kind: str, pool: Window, on: Backend, x: Array) -> Array:
    return on.conv2d_packed_max_pool(x, packed, kind, pool)


def _compose(steps: list[_Step]) -> _Step:
    def run(on: Backend, x: Array) -> Array:
        for step in steps:
            x = step(on, x)
        return x

    return run


def _fold(norm: BatchNorm, p: Tree, s: Tree, weight: Array, bias: Array, xp: Any) -> tuple[Array, Array]:
    """Kernels (KH, KW, C, K) and bias (K,) of a convolution and the batch norm after it, linear in inference."""
    arrays = p["scale"], p["shift"], s["mean"], s["variance"]
    scale, shift, mean, variance = (values.astype(np.float64) for values in arrays)  # (K,) each
    factor = scale / xp.sqrt(variance + norm.epsilon)  # (K,)
    return (weight * factor).astype(weight.dtype), (factor * (bias - mean) + shift).astype(weight.dtype)
