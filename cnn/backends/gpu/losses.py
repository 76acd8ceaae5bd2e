"""Softmax cross-entropy with its gradient, and the number of correct rows; see cuda/losses.cu.

N rows, K classes. Outputs are float32 or float64; targets are class indices (N,) or soft labels (N, K).
"""

from typing import Any

import numpy as np

from cnn.backends.base import Array
from cnn.backends.gpu.kernels import kernel, type_name

_THREADS = 512  # of a block that goes through all rows, `LOSS_THREADS` in cuda/losses.cu
_MAX_PASSES = 8  # of one block over its rows; more rows are for several blocks, and a second launch
_BLOCK_THREADS, _MAX_BLOCKS = 256, 1024  # of several blocks


def softmax_cross_entropy(
    logits: Array, targets: Array, smoothing: float, class_weights: Array | None, denominator: int
) -> tuple[Array, Array, Array]:
    """See `ReferenceBackend.softmax_cross_entropy`."""
    import cupy

    logits = cupy.ascontiguousarray(logits)  # (N, K)
    rows, classes = logits.shape
    gradient = cupy.empty(logits.shape, logits.dtype)  # (N, K)
    loss, correct = cupy.empty((), logits.dtype), cupy.empty((), np.int64)  # () each
    if not rows:
        loss.fill(0)
        correct.fill(0)
        return loss, gradient, correct
    blocks, threads = _grid(rows, _lanes(classes))
    losses, counts = None, None
    if blocks > 1:
        losses, counts = cupy.empty(blocks, np.float64), cupy.empty(blocks, np.int64)  # (B,) each
    number = logits.dtype.type
    _kernel(f"softmax_cross_entropy<{type_name(logits)}, {_lanes(classes)}>", logits)(
        (blocks,), (threads,),
        (logits, *_targets(targets, logits), class_weights, gradient, loss, correct, losses, counts, rows, classes,
         number(smoothing), number(denominator)),
    )  # fmt: skip
    if blocks > 1:
        _kernel(f"loss_merge<{type_name(logits)}>", logits)((1,), (_THREADS,), (losses, counts, blocks, loss, correct))
    return loss, gradient, correct


def count_correct(outputs: Array, targets: Array) -> Array:
    """See `ReferenceBackend.count_correct`."""
    import cupy

    outputs = cupy.ascontiguousarray(outputs)  # (N, K)
    rows, classes = outputs.shape
    correct = cupy.empty((), np.int64)  # ()
    if not rows:
        correct.fill(0)
        return correct
    lanes = _lanes(classes)
    _kernel(f"count_correct<{type_name(outputs)}, {lanes}>", outputs)(
        (1,), (_threads(rows, lanes),), (outputs, *_targets(targets, outputs), correct, rows, classes)
    )
    return correct


def _targets(targets: Array, outputs: Array) -> tuple[Array | None, Array | None]:
    """Class indices int64 (N,) and soft labels (N, K) of the outputs' type; one of the two is None."""
    import cupy

    targets = cupy.ascontiguousarray(targets)  # (N,) or (N, K)
    if targets.ndim == 1:
        return targets.astype(np.int64, copy=False), None
    return None, targets.astype(outputs.dtype, copy=False)


def _lanes(classes: int) -> int:
    """Lanes that share a row: few for few classes, so that a warp has several rows."""
    return 8 if classes <= 64 else 32


def _threads(rows: int, lanes: int) -> int:
    """Threads of one block for all rows: a power of 2."""
    return min(_THREADS, max(32, 1 << (rows * lanes - 1).bit_length()))


def _grid(rows: int, lanes: int) -> tuple[int, int]:
    """Blocks, and threads of each."""
    if rows * lanes <= _MAX_PASSES * _THREADS:
        return 1, _threads(rows, lanes)
    return min(_MAX_BLOCKS, -(-rows * lanes // _BLOCK_THREADS)), _BLOCK_THREADS


def _kernel(name: str, outputs: Array) -> Any:
    return kernel("losses.cu", name, _together(outputs))


def _together(outputs: Array) -> tuple[str, ...]:
    """All kernels for outputs of this type, compiled at once."""
    kind = type_name(outputs)
    names = ("softmax_cross_entropy", "count_correct")
    return (f"loss_merge<{kind}>", *(f"{name}<{kind}, {lanes}>" for name in names for lanes in (8, 32)))
