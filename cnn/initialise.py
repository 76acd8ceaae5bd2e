"""How parameters start. An initialiser is a function (shape, key) -> float64 values on the host."""

import math

import numpy as np

from cnn.arena import Shape
from cnn.rng import normal, uniform


def zeros(shape: Shape, key: int) -> np.ndarray:
    return np.zeros(shape)


def ones(shape: Shape, key: int) -> np.ndarray:
    return np.ones(shape)


def he_normal(shape: Shape, key: int) -> np.ndarray:
    """Normal with variance 2 / fan-in, which keeps the signal's size through ReLUs (He et al., 2015).

    The last axis is the output; all others are the fan-in.
    """
    return _scaled_normal(shape, key, math.sqrt(2.0 / math.prod(shape[:-1])))


def lecun_normal(shape: Shape, key: int) -> np.ndarray:
    """Normal with variance 1 / fan-in, for outputs that meet no ReLU (LeCun et al., 1998)."""
    return _scaled_normal(shape, key, math.sqrt(1.0 / math.prod(shape[:-1])))


def fan_in_uniform(shape: Shape, key: int) -> np.ndarray:
    """Uniform within 1 / sqrt(fan-in) of zero, a third of `lecun_normal`'s variance; how PyTorch starts its layers."""
    draws = uniform(key, np.arange(math.prod(shape)), 1).astype(np.float64).reshape(shape)  # shape
    return (2.0 * draws - 1.0) / math.sqrt(math.prod(shape[:-1]))


def identity(shape: Shape, key: int) -> np.ndarray:
    """Kernels (KH, KW, C, K) whose first C filters pass on what they get; others as `fan_in_uniform`.

    A convolution that starts so needs no shortcut around it (Zagoruyko and Komodakis, 2017, call them Dirac's).
    """
    height, width, channels, filters = shape
    values = fan_in_uniform(shape, key)  # (KH, KW, C, K)
    passed = min(channels, filters)
    values[..., :passed] = 0.0
    values[height // 2, width // 2, range(passed), range(passed)] = 1.0
    return values


def _scaled_normal(shape: Shape, key: int, deviation: float) -> np.ndarray:
    values = normal(key, math.prod(shape)).reshape(shape)  # shape
    values *= deviation
    return values
