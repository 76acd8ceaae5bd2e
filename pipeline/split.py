"""Who goes to train and who to val."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.errors import OptionError
from pipeline.plan import permutation


def split(
    labels: npt.NDArray[np.int64], lead: npt.NDArray[np.int64], fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose the validation rows: labels (N,), lead (N,) -> True where a row goes to val, (N,).

    lead names each row's group by the first row in it; a row on its own leads itself. A group is never
    torn apart: it goes where its lead goes. Stratified: each class gives the fraction, in [0, 1), to the
    nearest row as far as its groups allow; where the fraction is above 0, a class of two groups or more
    keeps at least one on each side. Depends on the arguments only, and a few more groups move few rows.
    Raises OptionError for a fraction outside its range.
    """
    if not 0 <= fraction < 1:
        raise OptionError(f"expected a validation fraction in [0, 1), found {fraction}: 0.1 is usual")
    to_val = np.zeros(len(labels), dtype=np.bool_)  # (N,)
    if fraction == 0:
        return to_val
    sizes = np.bincount(lead, minlength=len(labels))  # (N,) rows of the group that each row leads
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)  # (n,)
        ordered = rows[permutation(len(rows), seed, int(label))]  # (n,)
        leads = ordered[lead[ordered] == ordered]  # (groups,)
        target = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        to_val[leads[_fill(sizes[leads], target)]] = True
    return to_val[lead]


def _fill(sizes: npt.NDArray[np.int64], target: int) -> npt.NDArray[np.int64]:
    """Which of the groups, in this order, to take for `target` rows: those that still fit, at least one, never all."""
    if len(sizes) < 2:
        return np.empty(0, dtype=np.int64)
    taken: list[int] = []
    left = target
    for index, size in enumerate(sizes.tolist()):
        if size <= left and len(taken) < len(sizes) - 1:
            taken.append(index)
            left -= size
        if not left:
            break
    return np.array(taken or [int(sizes.argmin())], dtype=np.int64)
