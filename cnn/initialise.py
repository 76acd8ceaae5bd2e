"""Initialisers of parameters: functions (shape, random key) -> float64 array of that shape, on the host.

The last axis of a shape is the output; the product of all others is the fan-in.
"""

import math

import numpy as np

from cnn.arena import Shape
from cnn.rng import normal, uniform


def zeros(shape: Shape, key: int) -> np.ndarray:
    """All zeros."""
    return np.zeros(shape)


def ones(shape: Shape, key: int) -> np.ndarray:
    """All ones."""
    return np.ones(shape)


def he_normal(shape: Shape, key: int) -> np.ndarray:
    """Normal with variance 2 / fan-in, which preserves the variance through ReLUs (He et al., 2015)."""
    return _scaled_normal(shape, key, math.sqrt(2.0 / math.prod(shape[:-1])))


def lecun_normal(shape: Shape, key: int) -> np.ndarray:
    """Normal with variance 1 / fan-in, for layers without a ReLU after them (LeCun et al., 1998)."""
    return _scaled_normal(shape, key, math.sqrt(1.0 / math.prod(shape[:-1])))


def fan_in_uniform(shape: Shape, key: int) -> np.ndarray:
    """Uniform in +-1 / sqrt(fan-in): PyTorch's default, a third of the variance of `lecun_normal`."""
    draws = uniform(key, np.arange(math.prod(shape)), 1).astype(np.float64).reshape(shape)  # shape
    return (2.0 * draws - 1.0) / math.sqrt(math.prod(shape[:-1]))


def identity(shape: Shape, key: int) -> np.ndarray:
    """Kernels (KH, KW, C, K) whose first C filters are the identity; the others as `fan_in_uniform`.

    Known as Dirac initialisation: a deep network then trains without shortcuts (Zagoruyko and Komodakis, 2017).
    """
    height, width, channels, filters = shape
    values = fan_in_uniform(shape, key)  # (KH, KW, C, K)
    count = min(channels, filters)
    values[..., :count] = 0.0
    values[height // 2, width // 2, range(count), range(count)] = 1.0
    return values


def _scaled_normal(shape: Shape, key: int, std: float) -> np.ndarray:
    values = normal(key, math.prod(shape)).reshape(shape)  # shape
    values *= std
    return values
