"""Rows of a dataset, as indexing returns them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

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
