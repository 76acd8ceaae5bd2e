"""Two fingerprints -> is one a copy of the other, and how was it made?

A copy is the image in one of 8 positions (mirrored, turned), perhaps inverted, perhaps with a little cut off each
side. Whatever the position, the coefficients keep their sizes, and only change signs and places. A crop is a matrix
from each side: coefficients of the crop = D @ coefficients @ A.T. Both are tried out against the other's coefficients.

All numbers here are small multiples of a power of two: float64 adds them exactly, in whatever order a BLAS does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipeline.duplicates.fingerprint import COEFFICIENTS, COUNT, PLANES, WEIGHT

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# A copy may lack up to 7 hundredths of a side, at either end: CUTS x CUTS crops of an axis, crop k lacking
# k // CUTS hundredths at its beginning and k % CUTS at its end.
CUTS = 8

# What the positions are told apart by: this many of the lowest frequencies, each way.
LOW = 8

# The frequencies that are compared. A cropped image shows the higher ones at once beyond the 16 that are kept.
BAND = 14

# Bits of a position, in the order in which they are undone: exchange rows and columns, then mirror.
LEFT_RIGHT, TOP_BOTTOM, TRANSPOSED = 1, 2, 4

_SIGNS = (-1.0) ** np.arange(COUNT)  # (16,) what mirroring does to an axis
_FLIPS = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float64)  # (flip, parity of u, v)


@dataclass(frozen=True)
class Match:
    """How each of P images, the seconds, is best made out of a first one.

    score     (P,) correlation of the first, cropped, with the second, put upright: at most 1
    position  (P,) 0..7: what brings the second back to the first's position
    inverted  (P,) bool
    down      (P,) 0..63: what is cut off above and below the first
    across    (P,) the same left and right
    """

    score: Floats
    position: Ints
    inverted: npt.NDArray[np.bool_]
    down: Ints
    across: Ints

    def take(self, where: npt.NDArray[np.bool_] | Ints) -> Match:
        return Match(*(getattr(self, field.name)[where] for field in fields(self)))

    def put(self, where: npt.NDArray[np.bool_], other: Match) -> None:
        for field in fields(self):
            getattr(self, field.name)[where] = getattr(other, field.name)


def coefficients(fingerprints: npt.NDArray[np.uint8]) -> Floats:
    """(..., FINGERPRINT_BYTES) -> (..., 2, 16, 16)"""
    shape = (*fingerprints.shape[:-1], PLANES, COUNT, COUNT)
    return fingerprints[..., :COEFFICIENTS].view(np.int8).reshape(shape).astype(np.float64)


def crop_index(begin: int, end: int) -> int:
    """The crop that lacks so many hundredths of an axis at its beginning and end."""
    return begin * CUTS + end


def match(first: Floats, second: Floats, down: Ints, across: Ints, promising: float) -> Match:
    """Find how the second images are made out of the first.

    first, second  (P, 16, 16) coefficients of one plane
    down, across   (P,) crops to begin with
    promising      what scores less than this on its way is left as it is
    """
    result = _place(first, second, down, across)
    for _ in range(2):
        hopeful = result.score >= promising  # (P,)
        if hopeful.any():
            result.put(hopeful, _refine(first[hopeful], second[hopeful], result.take(hopeful)))
    return result


def _place(first: Floats, second: Floats, down: Ints, across: Ints) -> Match:
    """The best of 8 positions and 2 signs, by the lowest frequencies, for the given crops."""
    pairs = len(first)
    cropped = (CROPS[down, :LOW] @ first @ CROPS[across, :LOW].swapaxes(1, 2)).copy()  # (P, 8, 8)
    low = second[:, :LOW, :LOW].copy()  # (P, 8, 8)
    cropped[:, 0, 0] = low[:, 0, 0] = 0
    scores = np.empty((pairs, 8))
    for begin, other in ((0, low), (TRANSPOSED, low.swapaxes(1, 2))):
        parities = (cropped * other).reshape(pairs, LOW // 2, 2, LOW // 2, 2).sum((1, 3))  # (P, 2, 2)
        scores[:, begin : begin + TRANSPOSED] = parities.reshape(pairs, 4) @ _FLIPS.T
    position = np.abs(scores).argmax(1)  # (P,)
    best = scores[np.arange(pairs), position]  # (P,)
    score = np.abs(best) / _lengths((cropped * cropped).sum((1, 2)), (low * low).sum((1, 2)))  # (P,)
    return Match(score, position, best < 0, down.copy(), across.copy())


def _refine(first: Floats, second: Floats, found: Match) -> Match:
    """The best crop across for the given one down, then the best down for that."""
    upright = _upright(second, found)  # (P, 14, 14)
    across, _ = _best_crop(first, upright, found.down)
    down, score = _best_crop(first.swapaxes(1, 2), upright.swapaxes(1, 2), across)
    return Match(score, found.position, found.inverted, down, across)


def _upright(images: Floats, found: Match) -> Floats:
    """Undo position and inversion: (P, 16, 16) -> (P, 14, 14), without the mean."""
    transposed = found.position & TRANSPOSED != 0  # (P,)
    result = np.where(transposed[:, None, None], images.swapaxes(1, 2), images)[:, :BAND, :BAND]  # (P, 14, 14)
    result *= np.where(found.inverted, -1.0, 1.0)[:, None, None]
    result *= np.where((found.position & TOP_BOTTOM != 0)[:, None], _SIGNS[:BAND], 1.0)[:, :, None]
    result *= np.where((found.position & LEFT_RIGHT != 0)[:, None], _SIGNS[:BAND], 1.0)[:, None, :]
    result[:, 0, 0] = 0
    return result


def _best_crop(first: Floats, upright: Floats, down: Ints) -> tuple[Ints, Floats]:
    """The crop across (P,) that, after the given one down, makes the first most like the second; and its score (P,).

    Its product with the second and its own length are linear in the crop's matrix, or in the product of that with
    itself: all crops are tried by one matrix product each.
    """
    pairs = len(first)
    rows = CROPS[down, :BAND] @ first  # (P, 14, 16)
    products = (upright.swapaxes(1, 2) @ rows).reshape(pairs, -1) @ _CROP_ROWS  # (P, 64)
    squares = (rows.swapaxes(1, 2) @ rows).reshape(pairs, -1) @ _CROP_SQUARES  # (P, 64)
    means = rows[:, 0] @ CROPS[:, 0].T  # (P, 64) what the crops have at (0, 0), which does not count
    lengths = _lengths(squares - means * means, (upright * upright).sum((1, 2))[:, None])  # (P, 64)
    scores = products / lengths  # (P, 64)
    best = scores.argmax(1)  # (P,)
    return best, scores[np.arange(pairs), best]


def _lengths(squares: Floats, others: Floats) -> Floats:
    return np.sqrt(np.maximum(squares * others, 1.0))


def _crops() -> Floats:
    """The matrix (16, 16) of each of the 64 crops of an axis: weighted coefficients to those of the crop."""
    points = (np.arange(1024) + 0.5) / 1024  # (1024,)
    frequencies = np.arange(COUNT)[:, None]  # (16, 1)

    def waves(x: Floats) -> Floats:
        root = np.where(frequencies > 0, np.sqrt(2.0), 1.0)  # (16, 1)
        return root * np.cos(np.pi * frequencies * x)

    matrices = np.empty((CUTS * CUTS, COUNT, COUNT))  # (64, 16, 16)
    for crop in range(CUTS * CUTS):
        begin, end = crop // CUTS / 100, crop % CUTS / 100
        matrices[crop] = waves(points) @ waves(begin + (1 - begin - end) * points).T / len(points)
    return np.rint(matrices * (WEIGHT[:, None] / WEIGHT) * 64) / 64


CROPS = _crops()
_CROP_ROWS = np.ascontiguousarray(CROPS[:, :BAND].reshape(CUTS * CUTS, -1).T)  # (14 * 16, 64)
_CROP_SQUARES = np.ascontiguousarray(
    (CROPS[:, :BAND].swapaxes(1, 2) @ CROPS[:, :BAND]).reshape(CUTS * CUTS, -1).T  # (16 * 16, 64)
)
