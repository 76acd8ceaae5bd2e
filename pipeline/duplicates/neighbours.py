"""Approximate nearest-neighbour search over fingerprints: the few candidate near-duplicates of each image.

Images are compared by descriptors that do not change with mirroring, rotation by quarter turns or inversion: the
absolute values of the lowest coefficients, each pair (u, v), (v, u) sorted by size. Two descriptors are never further
apart than the coefficients are in the best orientation. Crops do change them, so each image queries with several crops
of itself.

Large sets are searched by cluster pruning (Manning, Raghavan and Schütze, Introduction to Information Retrieval,
7.1.6): a random sample of the images leads a cell each, and a query is compared with the images of the nearest cells.

All values are integers, held in float32 but below 2**24: a matrix product of them is exact on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.duplicates.fingerprint import FREQUENCIES, PLANES
from pipeline.duplicates.matching import CROP_MATRICES, LOW_FREQUENCIES, Floats, Ints, coefficients, crop_index
from pipeline.loader.epoch_order import permutation

Descriptors = npt.NDArray[np.uint8]
_Number = TypeVar("_Number", bound=np.generic)

# Crops of an axis that an image queries with: one of them is at most about 2 off any crop of up to 6 % a side.
QUERY_CROPS = np.array([crop_index(1, 1), crop_index(4, 2), crop_index(2, 4)])
QUERIES = len(QUERY_CROPS) ** 2  # of an image

MIN_DISTANCE_RATIO = 4  # of a query's squared norm to the squared distance of a candidate
MAX_CANDIDATES = 16  # of an image
MAX_CELL_CANDIDATES = 4  # of a query, in one cell

# Up to this many images, each is compared with all. Beyond, a query only with those in the cells nearest to it by the
# very lowest frequencies, which a crop changes least. Of 50,000 images that is about 1 in 35, and 99 % of the cropped
# duplicates are among them.
MAX_EXHAUSTIVE = 1000
CELLS_FACTOR = 2  # cells, in units of the square root of the number of images
PROBED_CELLS = 8  # of a query
CELL_FREQUENCIES = 5

# Ranges of the digits in a packed hit: 12 bits are left for the querying images of a block.
_VARIANTS, _DISTANCES, _IMAGES = 2**5, 2**16, 2**30

BLOCK = 4096  # images described at a time
BLOCK_SCORES = 2**20  # computed at a time
_UPPER, _RIGHT = np.triu_indices(LOW_FREQUENCIES, 1)  # (28,)
_DIAGONAL = np.arange(1, LOW_FREQUENCIES)  # (7,)
_CELL_VALUES = np.flatnonzero(np.concatenate([_RIGHT, _RIGHT, _DIAGONAL]) < CELL_FREQUENCIES)  # (24,) of a descriptor


@dataclass(frozen=True)
class Candidates:
    """P pairs of possible near-duplicates, each at most once.

    first, second   (P,) images
    plane           (P,) in which they were found
    crop_y, crop_x  (P,) the crop of the first that is nearest to the second
    """

    first: Ints
    second: Ints
    plane: Ints
    crop_y: Ints
    crop_x: Ints


def _describe(low: Floats) -> Descriptors:
    """The descriptors (..., 63) of lowest coefficients (..., 8, 8)."""
    sizes = np.rint(np.abs(low)).clip(0, 255).astype(np.uint8)  # (..., 8, 8)
    over, under = sizes[..., _UPPER, _RIGHT], sizes[..., _RIGHT, _UPPER]  # (..., 28)
    middle = sizes[..., _DIAGONAL, _DIAGONAL]  # (..., 7)
    return np.concatenate([np.maximum(over, under), np.minimum(over, under), middle], axis=-1)


def _squared_norms(descriptors: Descriptors) -> Ints:
    """The squared norms (...) of descriptors (..., d)."""
    wide = descriptors.astype(np.int64)  # (..., d)
    return (wide * wide).sum(-1)


def _database_columns(descriptors: Descriptors, squares: Ints) -> npt.NDArray[np.float32]:
    """Descriptors (n, d) as columns (d + 2, n): `_query_rows` @ these = negative squared distances."""
    count, length = descriptors.shape
    columns = np.empty((length + 2, count), np.float32)  # (d + 2, n)
    columns[:length] = descriptors.T
    columns[length] = squares
    columns[length + 1] = 1
    return columns


def _query_rows(descriptors: Descriptors) -> npt.NDArray[np.float32]:
    """Descriptors (n, d) as rows (n, d + 2): see `_database_columns`."""
    count, length = descriptors.shape
    rows = np.empty((count, length + 2), np.float32)  # (n, d + 2)
    rows[:, :length] = descriptors
    rows[:, :length] *= 2
    rows[:, length] = -1
    rows[:, length + 1] = -_squared_norms(descriptors)
    return rows


class _PlaneIndex:
    """The images' descriptors in one plane, sorted into cells around some of them, the leaders."""

    def __init__(self, fingerprints: npt.NDArray[np.uint8], images: Ints, plane: int) -> None:
        # A flat image has no structure to find it by.
        values = slice(plane * FREQUENCIES**2, (plane + 1) * FREQUENCIES**2)
        has_structure = [fingerprints[block, values].any(axis=1) for block in blocks(images, BLOCK)]
        self.plane = plane
        images = images[np.concatenate(has_structure)]
        count = len(images)
        cell_count = CELLS_FACTOR * isqrt(count) if count > MAX_EXHAUSTIVE else 1
        leaders = np.sort(permutation(count, 0)[:cell_count])  # (L,)
        coarse = self._described(fingerprints, images[leaders])[:, _CELL_VALUES]  # (L, 24)
        self._leaders = _database_columns(coarse, _squared_norms(coarse))  # (26, L)
        descriptors = np.empty((count, LOW_FREQUENCIES**2 - 1), np.uint8)  # (n, 63)
        squares, cells = np.empty((2, count), np.int64)  # (n,) each
        for start in range(0, count, BLOCK):
            span = slice(start, start + BLOCK)
            descriptors[span] = self._described(fingerprints, images[span])
            squares[span] = _squared_norms(descriptors[span])
            cells[span] = self._cell_scores(descriptors[span]).argmax(1)  # of two equally near, the first
        order = np.argsort(cells, kind="stable")  # (n,)
        self.images = images[order]  # (n,) cell by cell
        self._descriptors = descriptors[order]
        self._squares = squares[order]
        self.bounds = np.searchsorted(cells[order], np.arange(self._leaders.shape[1] + 1))  # (L + 1,)

    def _described(self, fingerprints: npt.NDArray[np.uint8], images: Ints) -> Descriptors:
        return _describe(coefficients(fingerprints[images])[:, self.plane, :LOW_FREQUENCIES, :LOW_FREQUENCIES])

    def _cell_scores(self, descriptors: Descriptors) -> npt.NDArray[np.float32]:
        """Negative squared distances (n, L) of descriptors (n, 63) to the leaders."""
        return _query_rows(descriptors[:, _CELL_VALUES]) @ self._leaders

    def cells_to_probe(self, descriptors: Descriptors) -> tuple[Ints, Ints]:
        """Rows of the descriptors (n, 63), and the cells to compare them with: two (p,), in the order of the cells."""
        scores = self._cell_scores(descriptors)  # (n, L)
        rows, cells = _top_k(scores, np.ones(scores.shape, np.bool_), PROBED_CELLS)
        order = np.argsort(cells, kind="stable")  # (p,)
        return rows[order], cells[order]

    def members(self, cell: int) -> tuple[Ints, npt.NDArray[np.float32]]:
        """The images (m,) of a cell and their columns (65, m)."""
        span = slice(self.bounds[cell], self.bounds[cell + 1])
        return self.images[span], _database_columns(self._descriptors[span], self._squares[span])


def _query_coefficients(images: Floats, crops: Ints) -> Floats:
    """The lowest coefficients (n, c, c, 8, 8) of images (n, 16, 16), by `crop_y` and `crop_x` out of `crops` (c,)."""
    count, low = len(crops), LOW_FREQUENCIES
    matrix = CROP_MATRICES[crops, :low].reshape(count * low, FREQUENCIES)  # (8c, 16)
    both = matrix @ (images.reshape(-1, FREQUENCIES) @ matrix.T).reshape(-1, FREQUENCIES, count * low)  # (n, 8c, 8c)
    return both.reshape(-1, count, low, count, low).swapaxes(2, 3)


def blocks(rows: npt.NDArray[_Number], size: int) -> list[npt.NDArray[_Number]]:
    """Cut rows (n, ...) into blocks of `size`, the last one smaller; one empty block where n is 0."""
    return [rows[start : start + size] for start in range(0, max(1, len(rows)), size)]


class Neighbours:
    """An index of some of the fingerprints (N, FINGERPRINT_BYTES): those of `images` (n,)."""

    def __init__(self, fingerprints: npt.NDArray[np.uint8], images: Ints) -> None:
        self._fingerprints = fingerprints
        self._planes = [_PlaneIndex(fingerprints, images, plane) for plane in range(PLANES)]

    def candidates(self, images: Ints) -> Candidates:
        """Possible near-duplicates of these images (B,), in their order."""
        own = coefficients(self._fingerprints[images])  # (B, 2, 16, 16)
        found = [hits for plane in self._planes for hits in self._search(plane, own[:, plane.plane], images)]
        # Keep each pair where it is nearest, then the nearest pairs of each image. A hit is packed into one number,
        # its most important digit first, since numbers sort ten times as fast as rows of them.
        hits = np.sort(np.concatenate([np.empty(0, np.int64), *found]))  # (h,) query, second, distance, variant
        pairs = hits // (_VARIANTS * _DISTANCES)
        hits = hits[np.flatnonzero(np.diff(pairs, prepend=-1))]
        rest, variant = np.divmod(hits, _VARIANTS)
        rest, distance = np.divmod(rest, _DISTANCES)
        query, second = np.divmod(rest, _IMAGES)
        order = np.sort((query * _DISTANCES + distance) * len(hits) + np.arange(len(hits)))  # (h,)
        nearest = order % max(1, len(hits))
        query, second, variant = query[nearest], second[nearest], variant[nearest]
        best = np.arange(len(query)) - np.searchsorted(query, query) < MAX_CANDIDATES
        plane, crop = np.divmod(variant[best], QUERIES)
        crop_y, crop_x = np.divmod(crop, len(QUERY_CROPS))
        return Candidates(images[query[best]], second[best], plane, QUERY_CROPS[crop_y], QUERY_CROPS[crop_x])

    def _search(self, plane: _PlaneIndex, own: Floats, images: Ints) -> Iterator[Ints]:
        """Yield packed hits (h,), cell by cell.

        Digits: querying image (index into the block), image found, distance as a fraction of the limit, and variant
        (plane and crop).
        """
        crops = _describe(_query_coefficients(own, QUERY_CROPS)).reshape(len(own) * QUERIES, -1)  # (9B, 63)
        limits = np.maximum(1, _squared_norms(crops) // MIN_DISTANCE_RATIO)  # (9B,)
        queries = _query_rows(crops)  # (9B, 65)
        rows, cells = plane.cells_to_probe(crops)
        bounds = np.searchsorted(cells, np.arange(len(plane.bounds)))
        for cell in np.flatnonzero(np.diff(bounds)).tolist():
            members, columns = plane.members(cell)
            step = max(1, BLOCK_SCORES // max(1, len(members)))
            for start in range(bounds[cell], bounds[cell + 1], step):
                batch = rows[start : min(start + step, bounds[cell + 1])]  # (b,)
                scores = queries[batch] @ columns  # (b, m)
                near = scores >= -limits[batch][:, None].astype(np.float32)  # (b, m)
                row, column = _top_k(scores, near, MAX_CELL_CANDIDATES + 1)  # including the image itself
                hit = batch[row]
                other = members[column] != images[hit // QUERIES]
                hit, second = hit[other], members[column[other]]
                distance = -scores[row[other], column[other]].astype(np.int64) * (_DISTANCES - 1) // limits[hit]
                query, crop = np.divmod(hit, QUERIES)
                variant = plane.plane * QUERIES + crop
                yield ((query * _IMAGES + second) * _DISTANCES + distance) * _VARIANTS + variant


def _top_k(scores: npt.NDArray[np.float32], among: npt.NDArray[np.bool_], k: int) -> tuple[Ints, Ints]:
    """Rows and columns of the `k` highest scores (n, m) of each row, and of all that equal the last of them.

    Ties are all included: which of them a sort would prefer differs between machines. If few scores are `among` the
    eligible ones, all of these are returned.
    """
    if scores.shape[1] > k and np.count_nonzero(among) > len(scores) * k:
        among &= scores >= np.partition(scores, -k, axis=1)[:, -k, None]
    return np.divmod(np.flatnonzero(among), scores.shape[1])  # as np.nonzero does, in half the time
