"""Match pairs of fingerprints: find the transform from one image to the other, and their correlation under it.

The transforms are 8 orientations (mirrored and rotated by quarter turns), inversion, and crops of a few percent a side.
An orientation only flips signs of coefficients and transposes them. A crop multiplies them by a matrix from each side:
coefficients of the crop = D @ coefficients @ A.T. The search tries these against the other image's coefficients.

All numbers here are small multiples of a power of two: float64 adds them exactly, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipeline.duplicates.fingerprint import COEFFICIENTS, FREQUENCIES, PLANES, WEIGHT

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# A crop removes up to 7 hundredths of an axis at either end: CROP_STEPS x CROP_STEPS crops of an axis, crop k removing
# k // CROP_STEPS hundredths at its beginning and k % CROP_STEPS at its end.
CROP_STEPS = 8
CROPS = CROP_STEPS * CROP_STEPS

# The lowest frequencies along each axis, which decide on the orientation.
LOW_FREQUENCIES = 8

# The frequencies that are correlated. The highest ones of a crop depend on frequencies beyond the 16 in a fingerprint.
MATCHED_FREQUENCIES = 14

# Pairs that correlate less before their crop is refined are left as they are.
MIN_COARSE_CORRELATION = 0.7

# Bits of an orientation, in the order in which they are undone: transpose, then mirror.
LEFT_RIGHT, TOP_BOTTOM, TRANSPOSED = 1, 2, 4

_MIRROR_SIGNS = (-1.0) ** np.arange(FREQUENCIES)  # (16,) the effect of mirroring along an axis
_FLIPS = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float64)  # (flip, parity of u, v)


@dataclass(frozen=True)
class Match:
    """The best transform found from the first to the second image, for each of P pairs.

    score        (P,) correlation of the first, cropped, with the second, reoriented: at most 1
    orientation  (P,) 0..7: the bits to undo in the second
    inverted     (P,) bool
    crop_y       (P,) 0..63: the crop of the first from above and below
    crop_x       (P,) the same from the left and right
    """

    score: Floats
    orientation: Ints
    inverted: npt.NDArray[np.bool_]
    crop_y: Ints
    crop_x: Ints

    def take(self, where: npt.NDArray[np.bool_] | Ints) -> Match:
        """The selected pairs."""
        return Match(*(getattr(self, field.name)[where] for field in fields(self)))

    def put(self, where: npt.NDArray[np.bool_], other: Match) -> None:
        """Overwrite the selected pairs."""
        for field in fields(self):
            getattr(self, field.name)[where] = getattr(other, field.name)


def coefficients(fingerprints: npt.NDArray[np.uint8]) -> Floats:
    """The coefficients (..., 2, 16, 16) of fingerprints (..., FINGERPRINT_BYTES)."""
    shape = (*fingerprints.shape[:-1], PLANES, FREQUENCIES, FREQUENCIES)
    return fingerprints[..., :COEFFICIENTS].view(np.int8).reshape(shape).astype(np.float64)


def crop_index(begin: int, end: int) -> int:
    """The crop that removes so many hundredths of an axis at its beginning and end."""
    return begin * CROP_STEPS + end


def match(first: Floats, second: Floats, crop_y: Ints, crop_x: Ints) -> Match:
    """Find the transform from each first image to its second.

    first, second   (P, 16, 16) coefficients of one plane
    crop_y, crop_x  (P,) crops to begin with
    """
    result = _match_orientation(first, second, crop_y, crop_x)
    for _ in range(2):
        promising = result.score >= MIN_COARSE_CORRELATION  # (P,)
        if promising.any():
            result.put(promising, _refine_crop(first[promising], second[promising], result.take(promising)))
    return result


def _match_orientation(first: Floats, second: Floats, crop_y: Ints, crop_x: Ints) -> Match:
    """The best of 8 orientations, inverted or not, by the lowest frequencies, for the given crops."""
    pairs = len(first)
    low_y, low_x = CROP_MATRICES[crop_y, :LOW_FREQUENCIES], CROP_MATRICES[crop_x, :LOW_FREQUENCIES]  # (P, 8, 16)
    cropped = (low_y @ first @ low_x.swapaxes(1, 2)).copy()  # (P, 8, 8)
    low = second[:, :LOW_FREQUENCIES, :LOW_FREQUENCIES].copy()  # (P, 8, 8)
    cropped[:, 0, 0] = low[:, 0, 0] = 0
    scores = np.empty((pairs, 8))
    for bit, other in ((0, low), (TRANSPOSED, low.swapaxes(1, 2))):
        products = (cropped * other).reshape(pairs, LOW_FREQUENCIES // 2, 2, LOW_FREQUENCIES // 2, 2)
        scores[:, bit : bit + TRANSPOSED] = products.sum((1, 3)).reshape(pairs, 4) @ _FLIPS.T
    orientation = np.abs(scores).argmax(1)  # (P,)
    best = scores[np.arange(pairs), orientation]  # (P,)
    score = np.abs(best) / _norm_products((cropped * cropped).sum((1, 2)), (low * low).sum((1, 2)))  # (P,)
    return Match(score, orientation, best < 0, crop_y.copy(), crop_x.copy())


def _refine_crop(first: Floats, second: Floats, found: Match) -> Match:
    """The best `crop_x` for the given `crop_y`, then the best `crop_y` for that."""
    upright = _undo_orientation(second, found)  # (P, 14, 14)
    crop_x, _ = _best_crop(first, upright, found.crop_y)
    crop_y, score = _best_crop(first.swapaxes(1, 2), upright.swapaxes(1, 2), crop_x)
    return Match(score, found.orientation, found.inverted, crop_y, crop_x)


def _undo_orientation(images: Floats, found: Match) -> Floats:
    """Undo orientation and inversion: (P, 16, 16) -> (P, 14, 14), without the mean."""
    count = MATCHED_FREQUENCIES
    transposed = found.orientation & TRANSPOSED != 0  # (P,)
    result = np.where(transposed[:, None, None], images.swapaxes(1, 2), images)[:, :count, :count]  # (P, 14, 14)
    result *= np.where(found.inverted, -1.0, 1.0)[:, None, None]
    result *= np.where((found.orientation & TOP_BOTTOM != 0)[:, None], _MIRROR_SIGNS[:count], 1.0)[:, :, None]
    result *= np.where((found.orientation & LEFT_RIGHT != 0)[:, None], _MIRROR_SIGNS[:count], 1.0)[:, None, :]
    result[:, 0, 0] = 0
    return result


def _best_crop(first: Floats, upright: Floats, crop_y: Ints) -> tuple[Ints, Floats]:
    """The `crop_x` (P,) under which the first, already cropped by `crop_y`, correlates best; and the correlation (P,).

    The inner product with the second is linear in the crop's matrix, and the squared norm in the product of that matrix
    with itself: one matrix product each tries all crops.
    """
    pairs = len(first)
    rows = CROP_MATRICES[crop_y, :MATCHED_FREQUENCIES] @ first  # (P, 14, 16)
    products = (upright.swapaxes(1, 2) @ rows).reshape(pairs, -1) @ _CROP_ROWS  # (P, 64)
    squares = (rows.swapaxes(1, 2) @ rows).reshape(pairs, -1) @ _CROP_SQUARES  # (P, 64)
    means = rows[:, 0] @ CROP_MATRICES[:, 0].T  # (P, 64) the coefficient at (0, 0), to be left out
    norms = _norm_products(squares - means * means, (upright * upright).sum((1, 2))[:, None])  # (P, 64)
    scores = products / norms  # (P, 64)
    best = scores.argmax(1)  # (P,)
    return best, scores[np.arange(pairs), best]


def _norm_products(squares: Floats, others: Floats) -> Floats:
    return np.sqrt(np.maximum(squares * others, 1.0))


def _crop_matrices() -> Floats:
    """The matrix (16, 16) of each crop of an axis, from weighted coefficients to those of the crop: (64, 16, 16)."""
    points = (np.arange(1024) + 0.5) / 1024  # (1024,)
    frequencies = np.arange(FREQUENCIES)[:, None]  # (16, 1)

    def basis(x: Floats) -> Floats:
        """The orthonormal cosines at x (n,): (16, n)."""
        return np.where(frequencies > 0, np.sqrt(2.0), 1.0) * np.cos(np.pi * frequencies * x)

    matrices = np.empty((CROPS, FREQUENCIES, FREQUENCIES))  # (64, 16, 16)
    for crop in range(CROPS):
        begin, end = crop // CROP_STEPS / 100, crop % CROP_STEPS / 100
        matrices[crop] = basis(points) @ basis(begin + (1 - begin - end) * points).T / len(points)
    return np.rint(matrices * (WEIGHT[:, None] / WEIGHT) * 64) / 64


CROP_MATRICES = _crop_matrices()
_MATCHED = CROP_MATRICES[:, :MATCHED_FREQUENCIES]  # (64, 14, 16)
_CROP_ROWS = np.ascontiguousarray(_MATCHED.reshape(CROPS, -1).T)  # (14 * 16, 64)
_CROP_SQUARES = np.ascontiguousarray((_MATCHED.swapaxes(1, 2) @ _MATCHED).reshape(CROPS, -1).T)  # (16 * 16, 64)
