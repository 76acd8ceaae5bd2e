"""Who goes to train and who to val."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.errors import OptionError
from pipeline.plan import permutation


def split(labels: npt.NDArray[np.int64], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose the validation rows: labels (N,) -> True where a row goes to val, (N,).

    Stratified: each class gives the same fraction, in [0, 1), to the nearest row; where the fraction is
    above 0, a class of two rows or more keeps at least one on each side. Depends on the arguments only.
    Raises OptionError for a fraction outside its range.
    """
    if not 0 <= fraction < 1:
        raise OptionError(f"expected a validation fraction in [0, 1), found {fraction}: 0.1 is usual")
    to_val = np.zeros(len(labels), dtype=np.bool_)  # (N,)
    if fraction == 0:
        return to_val
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)  # (n,)
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        to_val[rows[permutation(len(rows), seed, int(label))[:count]]] = True
    return to_val
