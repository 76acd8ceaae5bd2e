"""Kernels that only go through memory move no more of it than they must.

A warp's loads at one place of the code are one request, which moves sectors of 32 bytes. The emulator counts these.
"""

from typing import Any

import numpy as np
import pytest

from cnn.backends.base import Window
from cnn.backends.gpu import elementwise, norm, pooling
from tests.cnn.backends.gpu.storage import KINDS, WIDE, random

_SLACK = 1.1  # sectors moved, over the fewest that hold the numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [64, 96])
def test_requests_are_whole_sectors(
    kind: str, channels: int, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cupy._kernels import costs

    wasteful, counted = [], set()

    def counting(kernel: Any) -> Any:
        def launch(*args: Any) -> None:
            with costs(kernel) as rows:
                kernel(*args)
            counted.add(kernel.name.partition("<")[0])
            wasteful.extend((kernel.name, *row) for row in rows if row[1] == "global" and row[3] > _SLACK)

        return launch

    for module in (norm, pooling, elementwise):
        for name in ("_kernel", "_convert_kernel"):
            if lookup := getattr(module, name, None):
                monkeypatch.setattr(module, name, lambda *key, lookup=lookup: counting(lookup(*key)))

    generator = np.random.default_rng(0)
    shape, wide = (2, 8, 6, channels), np.dtype(WIDE[kind]).name
    x, dy = random(generator, shape, kind), random(generator, shape, kind)  # (2, 8, 6, C) each
    scale, shift, d_scale, d_shift = (random(generator, (channels,), wide) for _ in range(4))  # (C,) each
    mean, variance = norm.merge(norm.statistics(x), 96, scale, shift, 0.1)  # (C,) each
    norm.apply(x, scale, shift, mean, variance, 1e-5, "")
    norm.backward(dy, x, scale, shift, mean, variance, 1e-5, "", d_scale, d_shift)
    norm.channel_sums(x, d_shift)
    for window in (Window((2, 2), (2, 2)), Window((3, 3), (2, 2), 1, 1, 1, 1)):
        y, winners = pooling.max_pool(x, window)  # (2, OH, OW, C) each
        pooling.max_pool_backward(y, winners, shape, window)
        pooling.average_pool_backward(pooling.average_pool(x, window), shape, window)
    y, winners = pooling.global_max_pool(x)  # (2, C) each
    pooling.global_max_pool_backward(y, winners, shape, x.dtype)
    pooling.global_average_pool_backward(pooling.global_average_pool(x), shape, x.dtype)
    elementwise.add(x, dy)
    elementwise.activate("tanh", x)
    elementwise.activate_backward("tanh", dy, None, x)
    elementwise.scale(x, 2.0)
    elementwise.dropout(x, 0.3, 5, None)
    if kind == "float32":
        elementwise.convert(elementwise.convert(x, np.uint16), np.float32)

    assert not wasteful
    assert len(counted) == (22 if kind == "float32" else 21)
