"""Helpers for tests of networks: all backends, Hypothesis strategies for layers, and the directional gradient check."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cnn import layers
from cnn.backends import pick_backend
from cnn.backends.base import Array, Backend
from cnn.layers import Layer, Run
from cnn.layers.activations import ACTIVATIONS
from cnn.layers.normalisation import PooledBatchNorm
from cnn.network import Network

# All backends; tests/conftest.py emulates a GPU where there is none.
BACKENDS = ["reference", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
thorough = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
Case = tuple[Layer, tuple[int, ...]]  # a layer, and the shape of one input


def get_backend(name: str) -> Backend:
    """The backend, with float32 products on a GPU too."""
    return pick_backend(name, precision="float32")


def _images(low: int = 1, high: int = 8) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high), st.integers(1, 6))


@st.composite
def _convolutions(draw: st.DrawFn) -> Case:
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = draw(st.one_of(st.just("same"), st.tuples(st.integers(0, 3), st.integers(0, 3))))
    stride = draw(st.one_of(st.just(1), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    shape = draw(_images(5, 9))
    return layers.Conv2D(draw(st.integers(1, 6)), kernel, stride, padding, draw(st.booleans())), shape


@st.composite
def _pools(draw: st.DrawFn, kind: Callable[..., Layer]) -> Case:
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.one_of(st.none(), st.integers(1, 3)))
    padding = draw(st.integers(0, min(size) // 2))
    return kind(size, stride, padding), draw(_images(4, 9))


@st.composite
def _pooled_norms(draw: st.DrawFn) -> Case:
    channels = draw(st.sampled_from([1, 3, 8, 16]))  # the last two are whole vectors
    return PooledBatchNorm(layers.BatchNorm(activation=draw(_activations()))), (*draw(_images(2, 7))[:2], channels)


def _any_shape() -> st.SearchStrategy[tuple[int, ...]]:
    return st.one_of(_images(), st.tuples(st.integers(1, 12)))


def _of(layer: Callable[[], Layer], shapes: st.SearchStrategy[Any]) -> st.SearchStrategy[Case]:
    return shapes.map(lambda shape: (layer(), shape))


def _small_block(filters: int) -> layers.Sequential:
    return layers.chain(conv=layers.Conv2D(filters, 3), norm=layers.BatchNorm(), tanh=layers.Tanh())


def _activations() -> st.SearchStrategy[str]:
    return st.sampled_from(["", *ACTIVATIONS])


@st.composite
def _norms(draw: st.DrawFn) -> Case:
    shape = draw(st.one_of(_images(2), st.tuples(st.integers(1, 8))))
    return layers.BatchNorm(activation=draw(_activations())), shape


@st.composite
def _whitenings(draw: st.DrawFn) -> Case:
    shape, kernel = draw(_images(3, 7)), draw(st.integers(1, 3))
    return layers.Whitening(2 * kernel**2 * shape[2], kernel, bias=draw(st.booleans())), shape


@st.composite
def _residuals(draw: st.DrawFn) -> Case:
    shape, activation = draw(_images(2, 6)), draw(_activations())
    if draw(st.booleans()):
        return layers.Residual(_small_block(shape[2]), activation=activation), shape
    filters = draw(st.integers(1, 4))
    return layers.Residual(_small_block(filters), layers.Conv2D(filters, 1, bias=False), activation), shape


# Layers to draw, by class; a test in test_gradients checks that none is missing.
LAYERS: dict[type, st.SearchStrategy[Case]] = {
    layers.Conv2D: _convolutions(),
    layers.Dense: st.tuples(st.integers(1, 9), st.booleans(), st.integers(1, 9)).map(
        lambda drawn: (layers.Dense(drawn[0], drawn[1]), (drawn[2],))
    ),
    layers.Flatten: _of(layers.Flatten, _images()),
    layers.Whitening: _whitenings(),
    layers.MaxPool: _pools(layers.MaxPool),
    layers.AveragePool: _pools(layers.AveragePool),
    layers.GlobalAveragePool: _of(layers.GlobalAveragePool, _images()),
    layers.GlobalMaxPool: _of(layers.GlobalMaxPool, _images()),
    layers.BatchNorm: _norms(),
    PooledBatchNorm: _pooled_norms(),
    layers.Dropout: st.tuples(st.floats(0.0, 0.9), _any_shape()).map(lambda d: (layers.Dropout(d[0]), d[1])),
    layers.ReLU: _of(layers.ReLU, _any_shape()),
    layers.GELU: _of(layers.GELU, _any_shape()),
    layers.SiLU: _of(layers.SiLU, _any_shape()),
    layers.Sigmoid: _of(layers.Sigmoid, _any_shape()),
    layers.Tanh: _of(layers.Tanh, _any_shape()),
    layers.Scale: _of(lambda: layers.Scale(0.3), _any_shape()),
    layers.Softmax: _of(layers.Softmax, st.tuples(st.integers(1, 9))),
    layers.Sequential: _of(lambda: layers.chain(a=_small_block(3), b=_small_block(2)), _images(2, 6)),
    layers.Residual: _residuals(),
}


def well_apart(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values far enough from 0 and from each other that small steps cross no kink: |x| and gaps over 0.01."""
    size = math.prod(shape)
    steps = generator.permutation(size) - size // 2  # (size,)
    spacing = max(0.02, 4.0 / size)
    return (spacing * (steps + 0.5)).reshape(shape)


def random_network(layer: Layer, shape: tuple[int, ...], backend: Backend, seed: int, dtype: Any) -> Network:
    """A network whose parameters are all random, including those initialised to zeros or ones."""
    network = Network(layer, shape, backend, seed, dtype)
    generator = np.random.default_rng(seed)
    for name, view in network.parameters.views.items():
        network.parameters.assign(name, backend.to_host(view) + 0.3 * generator.normal(size=view.shape))
    return network


def training_run(backend: Backend, key: int = 7, rows: Array | None = None) -> Run:
    return Run(backend, training=True, key=key, rows=rows)


def directional_error(
    value: Callable[[list[np.ndarray]], float], gradients: list[np.ndarray], at: list[np.ndarray], seed: int
) -> float:
    """Relative error of `gradients` against a fourth-order central difference of `value` along one direction.

    The direction is random in all arguments together, plus the gradient's own, so that the derivative along it does
    not cancel (after Chainer's gradient_check).
    """
    generator = np.random.default_rng(seed)
    flat = np.concatenate([g.reshape(-1) for g in gradients])  # (all,)
    direction = generator.normal(size=flat.size)  # (all,)
    direction /= np.linalg.norm(direction)
    length = np.linalg.norm(flat)
    if length > 0:
        direction = (direction + flat / length) / 2
    step = 1e-4

    def moved(steps: float) -> float:
        offsets = np.split(direction * (steps * step), np.cumsum([a.size for a in at])[:-1])
        return value([a + offset.reshape(a.shape) for a, offset in zip(at, offsets, strict=True)])

    numeric = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * step)
    exact = float(flat @ direction)
    return abs(numeric - exact) / max(abs(numeric), abs(exact), 1e-3)


def to_device(backend: Backend, values: np.ndarray) -> Array:
    return backend.asarray(values)
