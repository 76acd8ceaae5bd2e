"""The SplitMix64 mixing function, from which all random numbers are made.

A seed must always give the same numbers; the streams of a library's generators may change with a release.
Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from typing import Any

MASK = 2**64 - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # the increment between two states
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(z: Any) -> Any:
    """Apply the SplitMix64 finaliser to a uint64 array of NumPy or CuPy, elementwise and in place; return it."""
    u64 = z.dtype.type
    z ^= z >> u64(30)
    z *= u64(_MULTIPLIERS[0])
    z ^= z >> u64(27)
    z *= u64(_MULTIPLIERS[1])
    z ^= z >> u64(31)
    return z
