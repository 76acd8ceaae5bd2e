"""Fingerprints -> groups of copies: pictures that are one picture, resized, recompressed, mirrored, turned, inverted,
recoloured or slightly cropped.

A train/validation split must keep a group on one side: a network that has seen a picture knows its copies.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product

import numpy as np
import numpy.typing as npt

from pipeline.fingerprint import COEFFICIENTS, CONTRAST, MEAN, PLANES
from pipeline.matching import LEFT_RIGHT, TOP_BOTTOM, TRANSPOSED, Match, coefficients, crop_index, match
from pipeline.neighbours import Neighbours

Fingerprints = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

# Correlation of two pictures' coefficients, one cropped and put upright, from which they are copies.
SIMILAR = 0.9
PROMISING = 0.7  # on the way there, before the crop is found

# In levels of grey: what has less contrast is a copy only if it has the same colour too.
FAINT = 6
SAME_COLOUR = 6  # levels that the mean colours may differ by
SAME_FLAT_COLOUR = 2

# In levels: from such a difference of mean colours on, a copy is called recoloured. A crop alone shifts them a little.
RECOLOURED, RECOLOURED_CROP = 8, 20
CROPPED = 2  # hundredths of an axis, from which a copy is called cropped

BLOCK = 2048  # pictures whose neighbours are looked for at a time
PAIRS = 1024  # compared at a time

POSITIONS = {
    0: (),
    LEFT_RIGHT: ("flipped",),
    TOP_BOTTOM: ("flipped", "turned 180"),
    LEFT_RIGHT | TOP_BOTTOM: ("turned 180",),
    TRANSPOSED: ("flipped", "turned 270"),
    TRANSPOSED | LEFT_RIGHT: ("turned 270",),
    TRANSPOSED | TOP_BOTTOM: ("turned 90",),
    TRANSPOSED | LEFT_RIGHT | TOP_BOTTOM: ("flipped", "turned 90"),
}


@dataclass(frozen=True)
class Copies:
    """Which pictures are copies of which, of N.

    lead  (N,) the first picture of each one's group; itself if it is alone
    how   (N,) how each differs from its lead: '' for a lead; 'same'; or what was done to it, in this order: 'flipped'
          left to right, 'turned 90', 180 or 270 degrees clockwise, 'inverted', 'cropped', 'recoloured', joined by
          commas; or 'copy of a copy', if only others of the group are alike enough to both
    """

    lead: Ints
    how: list[str]


def find_copies(
    fingerprints: Fingerprints, workers: int = 1, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Copies:
    """Group the pictures that are copies of one another.

    fingerprints  (N, FINGERPRINT_BYTES), as `fingerprint` makes them; may be a memory map
    workers       threads; the result is the same for any number
    on_progress   called with pictures done and their total, from this thread

    Needs a few hundred bytes a picture, besides the fingerprints.
    """
    groups = _Groups(len(fingerprints))
    distinct = _distinct(fingerprints, groups)
    flat = np.concatenate([_is_flat(fingerprints[part]) for part in _parts(distinct, BLOCK)] or [np.empty(0, np.bool_)])
    _join_flat(fingerprints, distinct[flat], groups)
    structured = distinct[~flat]
    neighbours = Neighbours(fingerprints, structured)
    blocks = _parts(structured, BLOCK)
    done = len(fingerprints) - len(structured)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for block, links in zip(blocks, pool.map(lambda b: _links(fingerprints, neighbours, b), blocks), strict=True):
            for first, second in links.tolist():
                groups.join(first, second)
            done += len(block)
            on_progress(done, len(fingerprints))
    lead = groups.leads()
    return Copies(lead, _how(fingerprints, lead))


class _Groups:
    """Disjoint sets of pictures, each named by its lowest index."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, picture: int) -> int:
        while self._parent[picture] != picture:
            self._parent[picture] = self._parent[self._parent[picture]]
            picture = self._parent[picture]
        return picture

    def join(self, first: int, second: int) -> None:
        first, second = self.find(first), self.find(second)
        self._parent[max(first, second)] = min(first, second)

    def leads(self) -> Ints:
        return np.array([self.find(picture) for picture in range(len(self._parent))], np.int64)


def _parts(pictures: Ints, size: int) -> list[Ints]:
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def _distinct(fingerprints: Fingerprints, groups: _Groups) -> Ints:
    """The first picture of each fingerprint. A thousand equal pictures would crowd out each other's neighbours."""
    first: dict[bytes, int] = {}
    for picture in range(len(fingerprints)):
        seen = first.setdefault(blake2b(fingerprints[picture].tobytes(), digest_size=16).digest(), picture)
        if seen != picture:
            groups.join(seen, picture)
    return np.fromiter(first.values(), np.int64, len(first))


def _is_flat(fingerprints: Fingerprints) -> npt.NDArray[np.bool_]:
    return ~fingerprints[:, :COEFFICIENTS].any(axis=1)


def _join_flat(fingerprints: Fingerprints, flat: Ints, groups: _Groups) -> None:
    """Join pictures of one flat colour with the first of about that colour: not with the next, which would chain."""
    cells: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # colours of leads, by their cell of the colour cube
    leads: dict[tuple[int, ...], int] = {}
    for picture in flat.tolist():
        colour = tuple(fingerprints[picture, MEAN].tolist())
        spans = [range((value - SAME_FLAT_COLOUR) // 8, (value + SAME_FLAT_COLOUR) // 8 + 1) for value in colour]
        near = [other for cell in product(*spans) for other in cells.get(cell, ())]
        near = [o for o in near if max(abs(a - b) for a, b in zip(o, colour, strict=True)) <= SAME_FLAT_COLOUR]
        if near:
            groups.join(min(leads[other] for other in near), picture)
        else:
            leads[colour] = picture
            cells.setdefault(tuple(value // 8 for value in colour), []).append(colour)


def _links(fingerprints: Fingerprints, neighbours: Neighbours, block: Ints) -> Ints:
    """Pairs (n, 2) that are copies, of the pictures of a block and any others."""
    candidates = neighbours.of(block)
    links = []
    for part in _parts(np.arange(len(candidates.first)), PAIRS):
        first, second = fingerprints[candidates.first[part]], fingerprints[candidates.second[part]]
        plane = candidates.plane[part]
        rows = np.arange(len(part))
        found = match(
            coefficients(first)[rows, plane],
            coefficients(second)[rows, plane],
            candidates.down[part],
            candidates.across[part],
            PROMISING,
        )
        alike = _alike(found, first, second, plane)
        links.append(np.stack([candidates.first[part][alike], candidates.second[part][alike]], axis=1))
    return np.concatenate(links) if links else np.empty((0, 2), np.int64)


def _alike(found: Match, first: Fingerprints, second: Fingerprints, plane: Ints | int) -> npt.NDArray[np.bool_]:
    """Which of P pairs are copies: fingerprints (P, FINGERPRINT_BYTES), compared in a plane."""
    rows = np.arange(len(first))
    contrast = np.minimum(first[:, CONTRAST][rows, plane], second[:, CONTRAST][rows, plane])  # (P,) half levels
    same_colour = ~found.inverted & (_colour_difference(first, second, np.zeros(len(first), np.bool_)) <= SAME_COLOUR)
    return (found.score >= SIMILAR) & ((contrast >= 2 * FAINT) | same_colour)


def _colour_difference(first: Fingerprints, second: Fingerprints, inverted: npt.NDArray[np.bool_]) -> Ints:
    """Greatest difference (P,) of the mean colours, in levels."""
    means = second[:, MEAN].astype(np.int64)  # (P, 3)
    means = np.where(inverted[:, None], 255 - means, means)
    return np.abs(means - first[:, MEAN]).max(axis=1)


def _how(fingerprints: Fingerprints, lead: Ints) -> list[str]:
    """How each picture differs from its lead."""
    how = [""] * len(lead)
    for part in _parts(np.flatnonzero(lead != np.arange(len(lead))), PAIRS):
        firsts, seconds = fingerprints[lead[part]], fingerprints[part]
        words = np.full(len(part), "copy of a copy", dtype=object)  # (n,)
        words[(firsts == seconds).all(axis=1) | _is_flat(firsts)] = "same"
        for start, plane, reverse in product((crop_index(0, 0), crop_index(3, 3)), range(PLANES), (False, True)):
            rest = np.flatnonzero(words == "copy of a copy")  # (r,)
            first, second = firsts[rest], seconds[rest]
            if reverse:
                first, second = second, first
            crops = np.full(len(rest), start)  # (r,)
            found = match(
                coefficients(first)[:, plane], coefficients(second)[:, plane], crops, crops.copy(), PROMISING
            )
            alike = _alike(found, first, second, plane)
            words[rest[alike]] = _words(found.take(alike), first[alike], second[alike], reverse)
        for picture, said in zip(part.tolist(), words, strict=True):
            how[picture] = said
    return how


def _words(found: Match, first: Fingerprints, second: Fingerprints, reverse: bool) -> list[str]:
    """What was done to the second, or if reverse to the first, in words."""
    cut = np.maximum(_cut(found.down), _cut(found.across))  # (P,)
    limit = np.where(cut >= CROPPED, RECOLOURED_CROP, RECOLOURED)  # (P,)
    recoloured = _colour_difference(first, second, found.inverted) >= limit
    said = []
    for pair, position in enumerate(found.position.tolist()):
        if reverse and position in (TRANSPOSED | LEFT_RIGHT, TRANSPOSED | TOP_BOTTOM):
            position ^= LEFT_RIGHT | TOP_BOTTOM  # a quarter turn, undone
        words = [
            *POSITIONS[position],
            *(["inverted"] if found.inverted[pair] else []),
            *(["cropped"] if cut[pair] >= CROPPED else []),
            *(["recoloured"] if recoloured[pair] else []),
        ]
        said.append(", ".join(words) or "same")
    return said


def _cut(crops: Ints) -> Ints:
    """Hundredths of an axis that crops lack."""
    return crops // crop_index(1, 0) + crops % crop_index(1, 0)
