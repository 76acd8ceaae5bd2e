"""Sums over the micro-batches of a step, one launch for each merge and one for all running statistics.

See cuda/micro_batches.cu. Vectors are float32 or float64, all of a call alike.
"""

from functools import cache
from typing import Any

import numpy as np

from cnn.backends.base import Array, MicroSums, StatisticsLayout
from cnn.backends.gpu.kernels import TYPES, kernel
from cnn.backends.gpu.layout import THREADS, flat_blocks, vector_of


def merge_sums(first: MicroSums, second: MicroSums, layout: StatisticsLayout) -> MicroSums:
    """See `ReferenceBackend.merge_sums`."""
    import cupy

    gradient, dtype = first.gradient, first.gradient.dtype
    merges = first.statistics is not None and second.statistics is not None
    channels, rows = layout.places.shape[1] if merges else 0, first.rows + second.rows
    loss, correct = cupy.empty((), dtype), cupy.empty((), np.int64)  # () each
    losses = [each.loss.astype(dtype, copy=False) for each in (first, second)]  # () each
    counts = [each.correct.astype(np.int64, copy=False) for each in (first, second)]  # () each
    vector = vector_of(gradient, second.gradient)
    blocks = flat_blocks(-(-max(gradient.size, channels, 1) // vector))
    _kernel("merge_sums", dtype, vector)(
        (blocks,), (THREADS,),
        (gradient, second.gradient, np.int64(gradient.size), first.statistics, second.statistics, layout.places,
         channels, dtype.type(second.rows / rows), *losses, loss, *counts, correct),
    )  # fmt: skip
    return MicroSums(gradient, loss, correct, first.statistics, rows)


def move_statistics(
    state: Array, statistics: Array, layout: StatisticsLayout, rows: int, outcome: Array
) -> None:
    """See `ReferenceBackend.move_statistics`."""
    channels = layout.places.shape[1]
    if channels:
        _kernel("move_statistics", state.dtype)(
            (-(-channels // THREADS),), (THREADS,),
            (state, statistics, layout.places, layout.momentum, layout.pixels, channels, np.int64(rows), outcome),
        )  # fmt: skip


@cache
def _kernel(name: str, dtype: np.dtype, vector: int = 0) -> Any:
    """The kernel for vectors of `dtype`, compiled with all for that type; `vector` is the elements per load."""
    kind = TYPES[str(dtype)]
    together = {
        ("move_statistics", 0): f"move_statistics<{kind}>",
        **{("merge_sums", each): f"merge_sums<{kind}, {each}>" for each in (16 // dtype.itemsize, 1)},
    }
    return kernel("micro_batches.cu", together[name, vector], tuple(together.values()))
