"""Device arrays in each storage type, from and to float64 on the host."""

import numpy as np

from cnn.backends.base import Array

KINDS = ("float64", "float32", "bf16")
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bf16": 5e-3}  # relative errors in norm
WIDE = {"float64": np.float64, "float32": np.float32, "bf16": np.float32}  # parameters and vectors


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32, rounded to the nearest, ties to even: uint16."""
    bits = values.view(np.uint32)  # shape of values
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_device(values: np.ndarray, kind: str) -> Array:
    import cupy

    return cupy.asarray(to_bf16(values.astype(np.float32)) if kind == "bf16" else values.astype(kind))


def to_host(array: Array) -> np.ndarray:
    """The array's numbers in float64."""
    values = array.get()  # shape of array
    if values.dtype == np.uint16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def random(generator: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """Normally distributed numbers on the device."""
    return to_device(generator.normal(size=shape), kind)


def error(found: Array | np.ndarray, expected: np.ndarray) -> float:
    """The relative error in norm; NaN where a number is not finite."""
    found = found if isinstance(found, np.ndarray) else to_host(found)  # shape of expected
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))
