"""Fully connected layers: BLAS products, each thread its own part. N rows, C inputs, K outputs."""

import numpy as np

from cnn.backend import Array
from cnn.backends.cpu.team import Team
from cnn.backends.reference import ReferenceBackend

_WORTH_SHARING = 4_000_000  # multiplications; smaller products are done before another thread is awake
_BLOCK_BYTES = 256 << 10  # of weight gradient at a time: fits into a core's L2
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
    block = max(_BLOCK_BYTES // d_weight[0].nbytes, 8)
    products = np.empty((team.threads, min(block, len(weight)), weight.shape[1]), dy.dtype)  # (T, block, K)
    team.run(_add_weight_gradient, x, dy, d_weight, products)
    if d_bias is not None:
        d_bias += dy.sum(axis=0)  # (K,)
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


def _add_weight_gradient(t: int, threads: int, x: Array, dy: Array, d_weight: Array, products: Array) -> None:
    """d_weight (C, K) += x^T @ dy, a share of its rows, block by block."""
    share, block = _share(t, threads, len(d_weight)), products.shape[1]
    for first in range(share.start, share.stop, block):
        here = slice(first, min(first + block, share.stop))
        product = products[t, : here.stop - first]  # (block, K)
        np.matmul(x[:, here].T, dy, out=product)
        d_weight[here] += product


def _input_gradient(t: int, threads: int, dy: Array, weight: Array, dx: Array) -> None:
    """dx (N, C) = dy @ weight^T, a share of the inputs."""
    inputs = _share(t, threads, len(weight))
    np.matmul(dy, weight[inputs].T, out=dx[:, inputs])
