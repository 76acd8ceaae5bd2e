"""Fully connected layers: BLAS products, each thread its own part. N rows, C inputs, K outputs."""

from collections.abc import Iterator

import numpy as np

from cnn.backend import Array
from cnn.backends.cpu.team import Team
from cnn.backends.reference import ReferenceBackend

_WORTH_SHARING = 4_000_000  # multiplications; smaller products are done before another thread is awake
_BLOCK = 1024  # rows of the kernels
_REFERENCE = ReferenceBackend()


def forward(x: Array, weight: Array, bias: Array | None, team: Team) -> Array:
    """See `ReferenceBackend.dense`."""
    if len(x) * weight.size < _WORTH_SHARING:
        return _REFERENCE.dense(x, weight, bias)
    if len(x) >= len(weight):
        y = np.empty((len(x), weight.shape[1]), x.dtype)  # (N, K)
        team.run(_rows, x, weight, y)
    else:
        parts = np.empty((team.threads, len(x), weight.shape[1]), x.dtype)  # (T, N, K)
        team.run(_parts, x, weight, parts)
        y = parts.sum(axis=0)  # (N, K)
    if bias is not None:
        y += bias  # (K,)
    return y


def backward(
    dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool, team: Team
) -> Array | None:
    """See `ReferenceBackend.dense_backward`."""
    if len(x) * weight.size < _WORTH_SHARING:
        return _REFERENCE.dense_backward(dy, x, weight, d_weight, d_bias, need_dx)
    team.run(_weight_gradient, x, dy, d_weight)
    if d_bias is not None:
        d_bias[...] = dy.sum(axis=0)  # (K,)
    if not need_dx:
        return None
    dx = np.empty(x.shape, x.dtype)  # (N, C)
    team.run(_input_gradient, dy, weight, dx)
    return dx


def _share(t: int, threads: int, length: int) -> slice:
    return slice(length * t // threads, length * (t + 1) // threads)


def _rows(t: int, threads: int, x: Array, weight: Array, y: Array) -> None:
    """y (N, K) = x @ weight, a share of the rows."""
    rows = _share(t, threads, len(x))
    np.matmul(x[rows], weight, out=y[rows])


def _parts(t: int, threads: int, x: Array, weight: Array, parts: Array) -> None:
    """parts (T, N, K): x @ weight summed over a share of the inputs."""
    inputs = _share(t, threads, len(weight))
    np.matmul(x[:, inputs], weight[inputs], out=parts[t])


def _weight_gradient(t: int, threads: int, x: Array, dy: Array, d_weight: Array) -> None:
    """d_weight (C, K) = x^T @ dy, a share of its rows."""
    for inputs in _blocks(t, threads, len(d_weight)):
        np.matmul(x[:, inputs].T, dy, out=d_weight[inputs])


def _input_gradient(t: int, threads: int, dy: Array, weight: Array, dx: Array) -> None:
    """dx (N, C) = dy @ weight^T, a share of the inputs."""
    for inputs in _blocks(t, threads, len(weight)):
        np.matmul(dy, weight[inputs].T, out=dx[:, inputs])


def _blocks(t: int, threads: int, length: int) -> Iterator[slice]:
    """A share of `length` in pieces that BLAS keeps in cache."""
    share = _share(t, threads, length)
    for first in range(share.start, share.stop, _BLOCK):
        yield slice(first, min(first + _BLOCK, share.stop))
