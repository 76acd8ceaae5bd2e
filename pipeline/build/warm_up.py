"""Load, and the first time compile, what a build computes with, before its first image.

The images of a first build would otherwise wait for kernels, and its rate would say that reading them is slow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def load_kernels(size: tuple[int, int], fit: str, prints: bool, on_compile: Callable[[], None]) -> None:
    """Load the kernels for frames of `size` (H, W); `prints`: those for fingerprints as well.

    `on_compile` is called, perhaps several times, when one is not in the cache.
    """
    from logpose.common.kernels import watched_compiling  # imports Numba, which is slow: a refused build needs none
    from pipeline.duplicates.fingerprint import fingerprints
    from pipeline.images.decode import fast_resize
    from pipeline.images.pixel_sums import add_colours

    (height, width), sums = size, np.zeros(3, np.uint64)  # (3,)
    with watched_compiling(on_compile):
        fast_resize()
        add_colours(np.zeros((height, width, 3), np.uint8), sums, sums.copy())
        if prints:
            frames = np.zeros((2, height, width, 3), np.uint8)  # (2, H, W, 3)
            padded = (0, 0, height, max(1, width - 1))
            fingerprints(frames, {0: (0, 0, height, width)} | ({1: padded} if fit == "pad" else {}))
