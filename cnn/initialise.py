"""How parameters start. An initialiser is a function (shape, key) -> float64 values on the host."""

import math

import numpy as np

from cnn.arena import Shape
from cnn.rng import normal


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


def _scaled_normal(shape: Shape, key: int, deviation: float) -> np.ndarray:
    values = normal(key, math.prod(shape)).reshape(shape)  # shape
    values *= deviation
    return values
