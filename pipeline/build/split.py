"""Who goes to train and who to val."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pipeline.build.row_assignment import first_orders
from pipeline.errors import OptionError
from pipeline.loader.epoch_order import permutation

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def split(labels: Ints, fraction: float, seed: int) -> Mask:
    """Choose the validation rows: labels (N,) -> True where a row goes to val, (N,).

    Stratified: each class gives the same fraction, in [0, 1), to the nearest row; where the fraction is
    above 0, a class of two rows or more keeps at least one on each side. Depends on the arguments only.
    Raises OptionError for a fraction outside its range.
    """
    if not 0 <= fraction < 1:
        raise OptionError(f"expected a validation fraction in [0, 1), found {fraction}: 0.1 is usual")
    to_val = np.zeros(len(labels), dtype=np.bool_)  # (N,)
    for label, target in enumerate(_targets(labels, fraction)):
        rows = np.flatnonzero(labels == label)  # (n,)
        to_val[rows[permutation(len(rows), seed, label)[:target]]] = True
    return to_val


def split_by_groups(labels: Ints, lead: Ints, fraction: float, seed: int) -> Mask:
    """The split (N,), with no group torn apart: lead (N,) names each row's group by the first row in it.

    Changes `split` as little as it can, since a build has stored the rows by then. Groups that it tears apart go to
    train; for the rows that val then lacks, it gets whole groups from the end of train, in the order in which that is
    stored: a random choice, of rows that lie together. As far as groups allow, each class has the same rows in val as
    before, and at least one group on each side.
    """
    before = split(labels, fraction, seed)
    sizes = np.bincount(lead, minlength=len(lead))  # (N,) rows of the group that each row leads
    torn = np.bincount(lead, before, len(lead)) % np.maximum(sizes, 1) != 0  # (N,) whether the group it leads is
    to_val = before & ~torn[lead]
    lacking = _targets(labels, fraction) - np.bincount(labels[to_val], minlength=labels.max(initial=-1) + 1)  # (C,)
    groups = np.bincount(labels[(lead == np.arange(len(lead))) & ~to_val], minlength=len(lacking))  # (C,) in train
    leads = [lead[row] for row in reversed(first_orders(before, seed)["train"])]
    for wanted in ([row for row in leads if not torn[row]], [row for row in leads if torn[row]]):
        _fill(to_val, wanted, sizes, labels, lacking, groups)
    for label in np.flatnonzero(lacking):
        if not to_val[labels == label].any() and groups[label] > 1:  # every group is too large: take the smallest
            own = [row for row in leads if labels[row] == label]
            to_val[min(own, key=lambda row: sizes[row])] = True
    return to_val[lead]


def _targets(labels: Ints, fraction: float) -> Ints:
    """Validation rows of each class, (C,)."""
    counts = np.bincount(labels)  # (C,)
    if fraction == 0:
        return np.zeros_like(counts)
    return np.minimum(np.maximum(1, np.rint(fraction * counts).astype(np.int64)), np.maximum(0, counts - 1))


def _fill(to_val: Mask, leads: Iterable[int], sizes: Ints, labels: Ints, lacking: Ints, groups: Ints) -> None:
    """Mark the leads of groups, in this order, that fit into what each class is lacking, never its last in train."""
    left = int(lacking.sum())
    for row in leads:
        if left <= 0:
            return
        label = labels[row]
        if not to_val[row] and sizes[row] <= lacking[label] and groups[label] > 1:
            to_val[row] = True
            lacking[label] -= sizes[row]
            groups[label] -= 1
            left -= sizes[row]
