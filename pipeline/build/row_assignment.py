"""Assign files to rows: the initial order of each split, and its changes when files leave or join. Pure functions.

A build learns some things late: that a file cannot be read, or that it is a near-duplicate of one in the other split.
By then most rows are written, so as many rows as possible keep their file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.dataset.schema import SPLITS
from pipeline.loader.epoch_order import permutation


def initial_orders(in_val: npt.NDArray[np.bool_], seed: int) -> dict[str, list[int]]:
    """The files of each split in seeded random order: in_val (N,) -> file numbers by split."""
    orders = {}
    for number, split in enumerate(SPLITS):
        members = np.flatnonzero(in_val if split == "val" else ~in_val)  # (n,)
        orders[split] = members[permutation(len(members), seed, number)].tolist()
    return orders


def joining_files(orders: dict[str, list[int]], in_val: npt.NDArray[np.bool_]) -> dict[str, list[int]]:
    """The files that join each split if in_val (N,) replaces the assignment in `orders`; in the other split's order."""
    train, val = (orders[split] for split in SPLITS)
    return {"train": [file for file in val if not in_val[file]], "val": [file for file in train if in_val[file]]}


def assign_rows(order: Sequence[int], leaving: Collection[int], joining: Sequence[int] = ()) -> list[int]:
    """The file of each row, after some files of the order have left and others have joined.

    No row is empty: the row of a file that left gets the next joining file or, once these are used up, the last file
    of the order that has no row otherwise. All other rows keep their file. The result depends on which files leave
    and join, not on when that was found out.
    """
    rows = sum(file not in leaving for file in order) + len(joining)
    spare = iter([*joining, *(file for file in reversed(order[rows:]) if file not in leaving)])
    assigned = [next(spare) if file in leaving else file for file in order[:rows]]
    return assigned + list(spare)


def by_shard(files: Sequence[int], shard_rows: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (number, files) of each shard."""
    for start in range(0, len(files), shard_rows):
        yield start // shard_rows, tuple(files[start : start + shard_rows])
