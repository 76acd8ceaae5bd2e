"""Stratified, group-aware train/validation split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pipeline.build.row_assignment import initial_orders
from pipeline.errors import OptionError
from pipeline.loader.epoch_order import permutation

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def split_files(labels: Ints, fraction: float, seed: int) -> Mask:
    """Choose the validation files: labels (N,) -> validation mask (N,).

    Stratified: each class gives the same fraction, in [0, 1), rounded to the nearest file; with a fraction above 0, a
    class of two files or more has at least one in each split. Depends on the arguments only. Raises OptionError for a
    fraction out of range.
    """
    if not 0 <= fraction < 1:
        raise OptionError(f"expected a validation fraction in [0, 1), found {fraction}: 0.1 is usual")
    in_val = np.zeros(len(labels), dtype=np.bool_)  # (N,)
    for label, target in enumerate(_targets(labels, fraction)):
        files = np.flatnonzero(labels == label)  # (n,)
        in_val[files[permutation(len(files), seed, label)[:target]]] = True
    return in_val


def split_groups(labels: Ints, lead: Ints, fraction: float, seed: int) -> Mask:
    """Choose the validation files, (N,), without dividing a group: lead (N,) is the first file of each file's group.

    Changes the result of `split_files` as little as possible, since a build has already stored the rows. Divided
    groups go to train. To replace them, validation gets whole groups from the end of the stored order of train: a
    random choice, in few shards. As far as groups allow, each class keeps its number of validation files, and has at
    least one group in each split.
    """
    before = split_files(labels, fraction, seed)
    sizes = np.bincount(lead, minlength=len(lead))  # (N,) files of the group that each file leads
    divided = np.bincount(lead, before, len(lead)) % np.maximum(sizes, 1) != 0  # (N,) whether `before` divides it
    in_val = before & ~divided[lead]
    needed = _targets(labels, fraction) - np.bincount(labels[in_val], minlength=labels.max(initial=-1) + 1)  # (C,)
    groups = np.bincount(labels[(lead == np.arange(len(lead))) & ~in_val], minlength=len(needed))  # (C,) in train
    leads = [lead[file] for file in reversed(initial_orders(before, seed)["train"])]
    for candidates in ([file for file in leads if not divided[file]], [file for file in leads if divided[file]]):
        _fill(in_val, candidates, sizes, labels, needed, groups)
    for label in np.flatnonzero(needed):
        if not in_val[labels == label].any() and groups[label] > 1:  # every group is too large: take the smallest
            own = [file for file in leads if labels[file] == label]
            in_val[min(own, key=lambda file: sizes[file])] = True
    in_val = in_val[lead]
    for label in np.unique(labels):
        files = labels == label  # (N,)
        of_class = np.unique(lead[files])  # (groups,)
        if in_val[files].all() and len(of_class) > 1:  # groups of several classes can do that
            in_val[lead == of_class[sizes[of_class].argmin()]] = False  # the smallest goes back to train
    return in_val


def _targets(labels: Ints, fraction: float) -> Ints:
    """Number of validation files of each class, (C,)."""
    counts = np.bincount(labels)  # (C,)
    if fraction == 0:
        return np.zeros_like(counts)
    return np.minimum(np.maximum(1, np.rint(fraction * counts).astype(np.int64)), np.maximum(0, counts - 1))


def _fill(in_val: Mask, leads: Iterable[int], sizes: Ints, labels: Ints, needed: Ints, groups: Ints) -> None:
    """Move groups to val, in the order of their leads, if all of their files are still needed there.

    Updates in_val (N,), needed (C,) and groups (C,). The last group of a class stays in train.
    """
    left = int(needed.sum())
    for file in leads:
        if left <= 0:
            return
        label = labels[file]
        if not in_val[file] and sizes[file] <= needed[label] and groups[label] > 1:
            in_val[file] = True
            needed[label] -= sizes[file]
            groups[label] -= 1
            left -= sizes[file]
