"""The dense layer's kernels against the reference in float64."""

from typing import Any

import numpy as np
import pytest

from cnn.backends.gpu import dense
from cnn.backends.reference import ReferenceBackend
from tests.cnn.backends.gpu.storage import error, random, to_host

REFERENCE = ReferenceBackend()
# By precision: storage type, math, and the largest relative error.
PRECISIONS = {
    "float64": ("float64", "PLAIN", 1e-12), "float32": ("float32", "PLAIN", 1e-5), "tf32": ("float32", "TF32", 5e-4),
}  # fmt: skip
SHAPES = ((70, 40, 24), (3, 37, 10), (66, 5, 130))  # N, C, K: 16-byte copies, and single elements


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_dense_equals_the_reference(device: Any, precision: str, shape: tuple[int, int, int]) -> None:
    kind, math, tolerance = PRECISIONS[precision]
    n, channels, outputs = shape
    generator = np.random.default_rng(0)
    x, weight, bias, dy, d_weight, d_bias = (
        random(generator, each, kind)
        for each in ((n, channels), (channels, outputs), (outputs,), (n, outputs), (channels, outputs), (outputs,))
    )
    y, dx = dense.forward(x, weight, bias, math), dense.backward(dy, x, weight, d_weight, d_bias, True, math)
    host = [to_host(each) for each in (x, weight, bias, dy)]
    expected_weight, expected_bias = np.empty((channels, outputs)), np.empty(outputs)  # (C, K), (K,)
    expected_dx = REFERENCE.dense_backward(host[3], host[0], host[1], expected_weight, expected_bias, True)  # (N, C)
    assert expected_dx is not None
    assert error(y, REFERENCE.dense(*host[:3])) < tolerance
    assert error(dx, expected_dx) < tolerance
    assert error(d_weight, expected_weight) < tolerance
    assert error(d_bias, expected_bias) < tolerance
    assert dense.backward(dy, x, weight, d_weight, None, False, math) is None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_does_not_depend_on_the_others(device: Any, precision: str) -> None:
    kind, math, _ = PRECISIONS[precision]
    generator = np.random.default_rng(0)
    x, weight = random(generator, (70, 40), kind), random(generator, (40, 24), kind)  # (N, C), (C, K)
    y, row = dense.forward(x, weight, None, math), dense.forward(x[66:67], weight, None, math)  # (N, K), (1, K)
    assert y[66:67].get().tobytes() == row.get().tobytes()
