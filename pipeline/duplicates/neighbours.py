"""Fingerprints -> for each image the few others that may be copies of it, found without comparing all with all.

Images are compared by what mirroring, turning and inverting leave alone: of the lowest coefficients the absolute
values, those of (u, v) and (v, u) in the order of their size. Two such descriptors are never further apart than the
coefficients are in the best position. Crops do change them, so each image asks for several crops of itself.

All values are whole numbers, held in float32 but below 2**24: a matrix product of them is exact on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.duplicates.fingerprint import COUNT, PLANES
from pipeline.duplicates.matching import CROPS, LOW, Floats, Ints, coefficients, crop_index
from pipeline.loader.epoch_order import permutation

Descriptors = npt.NDArray[np.uint8]
_Number = TypeVar("_Number", bound=np.generic)

# Crops of an axis that an image asks for: with one of them, any crop of up to 6 % a side is at most about 2 off.
ASKED = np.array([crop_index(1, 1), crop_index(4, 2), crop_index(2, 4)])
HYPOTHESES = len(ASKED) ** 2

FAR = 4  # copies' squared distance is at most this part of a descriptor's squared length
KEPT = 16  # neighbours of an image that are looked at more closely
KEPT_OF_CELL = 4  # the nearest to one of its crops, of one cell

# Up to so many images, all are compared with all. Beyond, each crop only with those in the cells nearest to it, and
# by the very lowest frequencies, which a crop changes least. Of 50,000 images that is 1 in 35 or so, and 99 in 100
# cropped copies are among them.
ONE_CELL = 1000
CELLS = 2  # times the square root of the images
PROBES = 8
LOWEST = 5

# How many values the digits of a hit may have: 12 bits are left for the images that are asked about at once.
_WAYS, _DISTANCES, _IMAGES = 2**5, 2**16, 2**30

SCORES = 2**20  # computed at a time
_UPPER, _RIGHT = np.triu_indices(LOW, 1)  # (28,)
_DIAGONAL = np.arange(1, LOW)  # (7,)
_LOWEST = np.flatnonzero(np.concatenate([_RIGHT, _RIGHT, _DIAGONAL]) < LOWEST)  # (24,) where they are in a descriptor


@dataclass(frozen=True)
class Candidates:
    """P pairs that may be copies, each at most once.

    first, second  (P,) images
    plane          (P,) in which they were found
    down, across   (P,) the crop of the first that comes nearest to the second
    """

    first: Ints
    second: Ints
    plane: Ints
    down: Ints
    across: Ints


def _describe(low: Floats) -> Descriptors:
    """Lowest coefficients (..., 8, 8) -> (..., 63)"""
    sizes = np.rint(np.abs(low)).clip(0, 255).astype(np.uint8)  # (..., 8, 8)
    over, under = sizes[..., _UPPER, _RIGHT], sizes[..., _RIGHT, _UPPER]  # (..., 28)
    middle = sizes[..., _DIAGONAL, _DIAGONAL]  # (..., 7)
    return np.concatenate([np.maximum(over, under), np.minimum(over, under), middle], axis=-1)


def _squares(descriptors: Descriptors) -> Ints:
    """(..., d) -> (...)"""
    wide = descriptors.astype(np.int64)  # (..., d)
    return (wide * wide).sum(-1)


def _members(descriptors: Descriptors, squares: Ints) -> npt.NDArray[np.float32]:
    """Descriptors (n, d) as columns (d + 2, n): asked by `_questions`, they answer with - squared distance."""
    count, length = descriptors.shape
    columns = np.empty((length + 2, count), np.float32)  # (d + 2, n)
    columns[:length] = descriptors.T
    columns[length] = squares
    columns[length + 1] = 1
    return columns


def _questions(descriptors: Descriptors) -> npt.NDArray[np.float32]:
    """(n, d) -> (n, d + 2)"""
    count, length = descriptors.shape
    rows = np.empty((count, length + 2), np.float32)  # (n, d + 2)
    rows[:, :length] = descriptors
    rows[:, :length] *= 2
    rows[:, length] = -1
    rows[:, length + 1] = -_squares(descriptors)
    return rows


class _Plane:
    """The images' descriptors in one plane, sorted into cells around some of them, the leaders."""

    def __init__(self, fingerprints: npt.NDArray[np.uint8], images: Ints, plane: int) -> None:
        # A flat image has no structure to find it by.
        part = slice(plane * COUNT * COUNT, (plane + 1) * COUNT * COUNT)
        has_structure = [fingerprints[chunk, part].any(axis=1) for chunk in _chunks(images)]
        self.plane = plane
        images = images[np.concatenate(has_structure)]
        count = len(images)
        leaders = np.sort(permutation(count, 0)[: CELLS * isqrt(count) if count > ONE_CELL else 1])  # (L,)
        lowest = self._described(fingerprints, images[leaders])[:, _LOWEST]  # (L, 24)
        self._leaders = _members(lowest, _squares(lowest))  # (26, L)
        descriptors = np.empty((count, LOW * LOW - 1), np.uint8)  # (n, 63)
        cells = np.empty(count, np.int64)  # (n,)
        for start in range(0, count, 4096):
            block = self._described(fingerprints, images[start : start + 4096])  # (b, 63)
            descriptors[start : start + 4096] = block
            cells[start : start + 4096] = self.nearest_cell(block)
        order = np.argsort(cells, kind="stable")  # (n,)
        self.images = images[order]  # (n,) cell by cell
        self._descriptors = descriptors[order]
        self._squares = np.concatenate([_squares(part) for part in _chunks(self._descriptors)])  # (n,)
        self.bounds = np.searchsorted(cells[order], np.arange(self._leaders.shape[1] + 1))  # (L + 1,)

    def _described(self, fingerprints: npt.NDArray[np.uint8], images: Ints) -> Descriptors:
        return _describe(coefficients(fingerprints[images])[:, self.plane, :LOW, :LOW])

    def nearest_cell(self, descriptors: Descriptors) -> Ints:
        """The nearest cell (n,) of descriptors (n, 63), of two equally near the first."""
        return (_questions(descriptors[:, _LOWEST]) @ self._leaders).argmax(1)

    def near_cells(self, descriptors: Descriptors) -> tuple[Ints, Ints]:
        """Which of the descriptors (n, 63) should look into which cell: two (p,), in the order of the cells."""
        scores = _questions(descriptors[:, _LOWEST]) @ self._leaders  # (n, L)
        rows, cells = _highest(scores, np.ones(scores.shape, np.bool_), PROBES)
        order = np.argsort(cells, kind="stable")  # (p,)
        return rows[order], cells[order]

    def members(self, cell: int) -> tuple[Ints, npt.NDArray[np.float32]]:
        """The images (m,) of a cell and their columns (65, m)."""
        span = slice(self.bounds[cell], self.bounds[cell + 1])
        return self.images[span], _members(self._descriptors[span], self._squares[span])


def _crops(images: Floats, crops: Ints) -> Floats:
    """The lowest coefficients (n, c, c, 8, 8) of images (n, 16, 16), by crop down and crop across."""
    count = len(crops)
    matrix = CROPS[crops, :LOW].reshape(count * LOW, COUNT)  # (8c, 16)
    both = matrix @ (images.reshape(-1, COUNT) @ matrix.T).reshape(-1, COUNT, count * LOW)  # (n, 8c, 8c)
    return both.reshape(-1, count, LOW, count, LOW).swapaxes(2, 3)


def _chunks(rows: npt.NDArray[_Number]) -> list[npt.NDArray[_Number]]:
    return [rows[start : start + 4096] for start in range(0, max(1, len(rows)), 4096)]


class Neighbours:
    """Finds candidates among some of the fingerprints (N, FINGERPRINT_BYTES)."""

    def __init__(self, fingerprints: npt.NDArray[np.uint8], images: Ints) -> None:
        self._fingerprints = fingerprints
        self._planes = [_Plane(fingerprints, images, plane) for plane in range(PLANES)]

    def of(self, images: Ints) -> Candidates:
        """What may be copies of these images (B,), in order."""
        own = coefficients(self._fingerprints[images])  # (B, 2, 16, 16)
        found = [hits for plane in self._planes for hits in self._ask(plane, own[:, plane.plane], images)]
        # Each pair where it is nearest, then of each image the nearest pairs. One number holds all there is to know
        # of a hit, most important first, since numbers sort ten times as fast as rows of them.
        hits = np.sort(np.concatenate([np.empty(0, np.int64), *found]))  # (h,) asker, second, distance, way
        pairs = hits // (_WAYS * _DISTANCES)
        hits = hits[np.flatnonzero(np.diff(pairs, prepend=-1))]
        rest, way = np.divmod(hits, _WAYS)
        rest, distance = np.divmod(rest, _DISTANCES)
        asker, second = np.divmod(rest, _IMAGES)
        order = np.sort((asker * _DISTANCES + distance) * len(hits) + np.arange(len(hits)))  # (h,)
        nearest = order % max(1, len(hits))
        asker, second, way = asker[nearest], second[nearest], way[nearest]
        kept = np.arange(len(asker)) - np.searchsorted(asker, asker) < KEPT
        plane, crop = np.divmod(way[kept], HYPOTHESES)
        down, across = np.divmod(crop, len(ASKED))
        return Candidates(images[asker[kept]], second[kept], plane, ASKED[down], ASKED[across])

    def _ask(self, plane: _Plane, own: Floats, images: Ints) -> Iterator[Ints]:
        """Hits (h,), cell by cell: asker (index into the block), image, distance as a share of the limit, and way
        (plane and crop), each a digit of one number.
        """
        crops = _describe(_crops(own, ASKED)).reshape(len(own) * HYPOTHESES, -1)  # (9B, 63)
        limits = np.maximum(1, _squares(crops) // FAR)  # (9B,)
        questions = _questions(crops)  # (9B, 65)
        rows, cells = plane.near_cells(crops)
        bounds = np.searchsorted(cells, np.arange(len(plane.bounds)))
        for cell in np.flatnonzero(np.diff(bounds)).tolist():
            members, columns = plane.members(cell)
            step = max(1, SCORES // max(1, len(members)))
            for start in range(bounds[cell], bounds[cell + 1], step):
                asking = rows[start : min(start + step, bounds[cell + 1])]  # (b,)
                scores = questions[asking] @ columns  # (b, m)
                near = scores >= -limits[asking][:, None].astype(np.float32)  # (b, m)
                row, column = _highest(scores, near, KEPT_OF_CELL + 1)  # itself among them
                asked = asking[row]
                other = members[column] != images[asked // HYPOTHESES]
                asked, second = asked[other], members[column[other]]
                distance = -scores[row[other], column[other]].astype(np.int64) * (_DISTANCES - 1) // limits[asked]
                asker, crop = np.divmod(asked, HYPOTHESES)
                way = plane.plane * HYPOTHESES + crop
                yield ((asker * _IMAGES + second) * _DISTANCES + distance) * _WAYS + way


def _highest(scores: npt.NDArray[np.float32], among: npt.NDArray[np.bool_], count: int) -> tuple[Ints, Ints]:
    """Rows and columns of the `count` highest scores (n, m) of each row, and their equals, among some.

    Equals are all taken: which of them a sort would prefer differs between machines. Where there are few, all are.
    """
    if scores.shape[1] > count and np.count_nonzero(among) > len(scores) * count:
        among &= scores >= np.partition(scores, -count, axis=1)[:, -count, None]
    return np.divmod(np.flatnonzero(among), scores.shape[1])  # as np.nonzero does it, but in half the time
