"""Rows of a dataset, as indexing returns them."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

RowIndices: TypeAlias = slice | list[int] | range | npt.NDArray[Any]


class Example(NamedTuple):
    """One row of a split."""

    image: npt.NDArray[np.uint8]  # (H, W, 3)
    label: int
    path: str


class Examples(NamedTuple):
    """Some rows of a split."""

    images: npt.NDArray[np.uint8]  # (n, H, W, 3)
    labels: npt.NDArray[np.int64]  # (n,)
    paths: list[str]


def row_numbers(
    index: SupportsIndex | RowIndices, rows: int, split: str, dataset: Path
) -> int | npt.NDArray[np.int64]:
    """The row, or the rows (n,), of an index into the `rows` rows of a split; none is negative.

    Raises IndexError for rows out of range, TypeError for what is no index.
    """

    def wrong(found: str) -> TypeError:
        return TypeError(
            f"expected an int, a slice or an array of ints, found {found} for {split} of {dataset}: index it like [0],"
            " [:10] or [[2, 3, 5]]"
        )

    def outside(row: int) -> IndexError:
        return IndexError(f"expected one of the {rows} rows of {split}, found row {row} of {dataset}: stay below len()")

    if isinstance(index, slice):
        return np.arange(*index.indices(rows), dtype=np.int64)
    if not (isinstance(index, list | range) or (isinstance(index, np.ndarray) and index.ndim)):
        try:
            number = operator.index(index)
        except TypeError:
            raise wrong(type(index).__name__) from None
        if not -rows <= number < rows:
            raise outside(number)
        return number % rows
    try:
        array = np.asarray(index if len(index) else np.empty(0, np.int64))  # (n,)
    except ValueError:  # lists of unequal lengths
        raise wrong("nested lists") from None
    if array.dtype == np.bool_ and array.shape == (rows,):
        return np.flatnonzero(array)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise wrong(f"an array of {array.dtype} {array.shape}")
    if (is_outside := (array < -rows) | (array >= rows)).any():
        raise outside(int(array[is_outside][0]))
    numbers = array.astype(np.int64)  # (n,)
    return np.where(numbers < 0, numbers + rows, numbers)
