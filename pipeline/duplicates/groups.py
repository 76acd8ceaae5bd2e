"""The result of a search for near-duplicates, apart from the search: a build's journal and reports need no more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class DuplicateGroups:
    """Groups of near-duplicates among N images.

    representative  (N,) the first image of each image's group; an image without near-duplicates has itself
    transforms      (N,) how each image differs from its representative: '' for a representative; 'same'; the transforms
                    that lead from one to the other, in this order and joined by commas: 'flipped' left to right,
                    'rotated 90', 180 or 270 degrees clockwise, 'inverted', 'cropped', 'recoloured'; or 'indirect',
                    if the two match only through other images of the group
    """

    representative: npt.NDArray[np.int64]
    transforms: list[str]
