"""Counter-based random numbers: pure functions of a key and a counter, with no hidden state.

A number depends on (seed, step, row), not on the order of computation: a resumed run, or one with another number of
workers, draws the same numbers for an image.
"""

import hashlib
from typing import Any

import numpy as np

from cnn.backends.base import Array
from logpose.common.splitmix64 import GOLDEN_GAMMA, MASK, mix

_BLOCK = 1 << 18  # numbers drawn at a time; even, since normal numbers are drawn in pairs


def key_of(*values: int | str) -> int:
    """Hash numbers and names to a 64-bit key, as in `key_of(seed, "dropout", step)`; the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, values)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(key: int, rows: Array, count: int, xp: Any = np) -> Array:
    """Draw `count` uniform numbers in [0, 1) per row: float32 (N, count), a function of (key, row, column).

    `rows` are integers (N,), of the array module `xp`. The generator is SplitMix64.
    """
    row_keys = rows.astype(xp.uint64) * xp.uint64(GOLDEN_GAMMA)  # (N,)
    row_keys = mix(row_keys + xp.uint64(key & MASK))  # (N,)
    columns = xp.arange(1, count + 1, dtype=xp.uint64) * xp.uint64(GOLDEN_GAMMA)  # (count,)
    bits = mix(row_keys[:, None] + columns)  # (N, count)
    # The top 24 bits fill a float32's significand exactly, so 1.0 is never reached.
    return (bits >> xp.uint64(40)).astype(xp.float32) * xp.float32(2.0**-24)  # (N, count)


def normal(key: int, count: int) -> Array:
    """Draw `count` standard normal numbers, float64 (count,), on the host, by the Box-Muller transform."""
    numbers = np.empty((count + 1) // 2 * 2)  # (count,), rounded up to even
    for first in range(0, len(numbers), _BLOCK):  # in blocks, to bound the memory of the temporaries
        block = numbers[first : first + _BLOCK]  # (up to _BLOCK,)
        rows = np.arange(first // 2, (first + len(block)) // 2)  # (len(block) / 2,)
        pairs = uniform(key, rows, 2).astype(np.float64)  # (len(block) / 2, 2)
        radius = np.sqrt(-2.0 * np.log1p(-pairs[:, 0]))  # (len(block) / 2,)
        angle = 2.0 * np.pi * pairs[:, 1]  # (len(block) / 2,)
        block[0::2] = radius * np.cos(angle)
        block[1::2] = radius * np.sin(angle)
    return numbers[:count]
