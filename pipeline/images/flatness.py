"""Count images that show next to nothing, such as 12 bits of grey shown as 16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_LEVELS = 16  # of 255, between the darkest and the brightest pixel of a flat image: 12 bits of 16 give 16


def count_flat(images: npt.NDArray[np.uint8]) -> int:
    """How many of some images (n, H, W, 3) are flat, without their white border."""
    return sum(_is_flat(image) for image in images)


def _is_flat(image: npt.NDArray[np.uint8]) -> bool:
    inked = (image != 255).any(axis=2)  # (H, W)
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    if not rows.size:
        return True
    inner = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].reshape(-1, 3)  # (h w, 3)
    return bool((inner.max(axis=0) - inner.min(axis=0) <= MAX_LEVELS).all())
