"""Which file has which row: an order for each part, and what becomes of it when files leave or join. Pure functions.

A build learns things late: that a file cannot be read, or that it is a copy of one on the other side. By
then most rows are written, so every row that can keeps its file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.dataset.schema import SPLITS
from pipeline.loader.epoch_order import permutation


def first_orders(in_val: npt.NDArray[np.bool_], seed: int) -> dict[str, list[int]]:
    """The files of each part in seeded random order: in_val (N,) -> file numbers by part."""
    orders = {}
    for number, part in enumerate(SPLITS):
        members = np.flatnonzero(in_val if part == "val" else ~in_val)  # (n,)
        orders[part] = members[permutation(len(members), seed, number)].tolist()
    return orders


def moved(orders: dict[str, list[int]], in_val: npt.NDArray[np.bool_]) -> dict[str, list[int]]:
    """For each part the files that join it, where in_val (N,) says otherwise than the orders; in the other's order."""
    train, val = (orders[part] for part in SPLITS)
    return {"train": [file for file in val if not in_val[file]], "val": [file for file in train if in_val[file]]}


def assign(order: Sequence[int], gone: Collection[int], joining: Sequence[int] = ()) -> list[int]:
    """The file of each row, given those of the order that are gone, and those that join it.

    Rows have no holes: a row whose file is gone gets the next one that joins or, when these are used up,
    the last file of the order that has no row any more. All other rows keep their file. The outcome
    depends on which files these are, not on when that came to light.
    """
    rows = sum(file not in gone for file in order) + len(joining)
    spare = iter([*joining, *(file for file in reversed(order[rows:]) if file not in gone)])
    kept = [next(spare) if file in gone else file for file in order[:rows]]
    return kept + list(spare)


def cut(files: Sequence[int], shard_rows: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(number, files) of each shard."""
    for start in range(0, len(files), shard_rows):
        yield start // shard_rows, tuple(files[start : start + shard_rows])
