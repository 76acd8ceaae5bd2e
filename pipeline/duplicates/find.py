"""Fingerprints -> groups of copies: images that are one image, resized, recompressed, mirrored, turned, inverted,
recoloured or slightly cropped.

A train/validation split must keep a group on one side: a network that has seen an image knows its copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from pipeline.duplicates.fingerprint import COEFFICIENTS, CONTRAST, MEAN, PLANES
from pipeline.duplicates.matching import LEFT_RIGHT, TOP_BOTTOM, TRANSPOSED, Match, coefficients, crop_index, match
from pipeline.duplicates.neighbours import Neighbours

Fingerprints = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

# Correlation of two images' coefficients, one cropped and put upright, from which they are copies. Of planted copies
# 2 in 1000 score less, of those of 32 px at JPEG quality 30 up to 1 in 100. Hardly any images that score more are no
# copies; down to 0.85, drawings of the same kind of thing come in, as of two guitars.
SIMILAR = 0.9
PROMISING = 0.7  # on the way there, before the crop is found

# In levels of grey: what has less contrast is plain. So is what has few coefficients that matter, (sum of squares)**2 /
# sum of fourth powers: any two gradients are alike, or two horizons. Of the images of CIFAR-10, 1 in 400 is plain.
FAINT = 6
FEW = 10

# Plain images must be more similar than others, of one colour, and neither inverted.
SIMILAR_PLAIN = 0.98
SAME_COLOUR = 6  # levels that the mean colours may differ by
SAME_FLAT_COLOUR = 2

# In levels: from such a difference of mean colours on, a copy is called recoloured. A crop alone shifts them a little.
RECOLOURED, RECOLOURED_CROP = 8, 20
REACH = 2  # links from the middle of a group to its ends

CROPPED = 2  # hundredths of an axis, from which a copy is called cropped

BLOCK = 1024  # images whose neighbours are looked for at a time
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
class DuplicateGroups:
    """Which images are copies of which, of N.

    lead  (N,) the first image of each one's group; itself if it is alone
    how   (N,) how each differs from its lead: '' for a lead; 'same'; or what was done to it, in this order: 'flipped'
          left to right, 'turned 90', 180 or 270 degrees clockwise, 'inverted', 'cropped', 'recoloured', joined by
          commas; or 'copy of a copy', if only others of the group are alike enough to both
    """

    lead: Ints
    how: list[str]


def find_duplicates(
    fingerprints: Fingerprints, workers: int = 1, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> DuplicateGroups:
    """Group the images that are copies of one another.

    fingerprints  (N, FINGERPRINT_BYTES), as `fingerprint` makes them; may be a memory map
    workers       threads; the result is the same for any number
    on_progress   called with images done and their total, from this thread

    Needs a few hundred bytes an image, besides the fingerprints.
    """
    total = len(fingerprints)
    middle, distinct = _equal(fingerprints)
    flat = np.concatenate([_is_flat(fingerprints[part]) for part in _parts(distinct, BLOCK)] or [np.empty(0, np.bool_)])
    _join_flat(fingerprints, distinct[flat], middle)
    links = [np.empty((0, 2), np.int64)]
    done = total - np.count_nonzero(~flat)
    for looked_at, found in _find_links(fingerprints, distinct[~flat], workers):
        links.append(found)
        done += looked_at
        on_progress(int(done), total)
    middles = _join_linked(np.concatenate(links), middle, REACH)
    # An image with a thousand near-equals links with but a few of them, and they fall into several groups.
    while len(links := [found for _, found in _find_links(fingerprints, middles, workers) if len(found)]):
        middles = _join_linked(np.concatenate(links), middle, 1)
    while not np.array_equal(middle, middle[middle]):
        middle = middle[middle]
    lead = np.full(total, total)  # (N,)
    np.minimum.at(lead, middle, np.arange(total))
    lead = lead[middle]
    return DuplicateGroups(lead, _how(fingerprints, lead))


def _find_links(fingerprints: Fingerprints, images: Ints, workers: int) -> Iterator[tuple[int, Ints]]:
    """Pairs (n, 2) that are copies, among some images: block by block, with the number of images of the block."""
    neighbours = Neighbours(fingerprints, images)
    blocks = _parts(images, BLOCK)
    # Each worker multiplies its own matrices; with threads of the BLAS on top, all would wait for one another.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(max(1, workers)) as pool:
        for block, found in zip(blocks, pool.map(lambda b: _links(fingerprints, neighbours, b), blocks), strict=True):
            yield len(block), found


def _parts(images: Ints, size: int) -> list[Ints]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _equal(fingerprints: Fingerprints) -> tuple[Ints, Ints]:
    """The first image with the same fingerprint, of each (N,), and those first ones (n,).

    Of a thousand equal images, each would find but the others in its neighbourhood.
    """
    first: dict[bytes, int] = {}
    equal = np.empty(len(fingerprints), np.int64)  # (N,)
    for image in range(len(fingerprints)):
        digest = blake2b(fingerprints[image].tobytes(), digest_size=16).digest()
        equal[image] = first.setdefault(digest, image)
    return equal, np.fromiter(first.values(), np.int64, len(first))


def _join_linked(links: Ints, middle: Ints, reach: int) -> Ints:
    """Join linked images to the middles of groups: links (n, 2), middle (N,) -> those middles (m,), in order.

    Not all that hang together: something drawn on white matches itself moved by a little, and that moved again, until
    all drawings are one group. Around the image with the most links, what so many links reach is a group.
    """
    near: dict[int, set[int]] = {}
    for one, other in links.tolist():
        near.setdefault(one, set()).add(other)
        near.setdefault(other, set()).add(one)
    middles = []
    for image in sorted(near, key=lambda image: (-len(near[image]), image)):
        if image not in near:
            continue
        group = border = {image}
        for _ in range(reach):
            border = {other for one in border for other in near[one] if other in near} - group
            group = group | border
        middles.append(image)
        middle[list(group)] = image
        for member in group:
            del near[member]
    return np.array(sorted(middles), np.int64)


def _is_flat(fingerprints: Fingerprints) -> npt.NDArray[np.bool_]:
    """(n, FINGERPRINT_BYTES) -> (n,)"""
    return np.all(fingerprints[:, :COEFFICIENTS] == 0, axis=1)


def _join_flat(fingerprints: Fingerprints, flat: Ints, middle: Ints) -> None:
    """Join images of one flat colour with the first of about that colour: not with the next, which would chain."""
    cells: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # colours of leads, by their cell of the colour cube
    firsts: dict[tuple[int, ...], int] = {}
    for image in flat.tolist():
        colour = tuple(fingerprints[image, MEAN].tolist())
        spans = [range((value - SAME_FLAT_COLOUR) // 8, (value + SAME_FLAT_COLOUR) // 8 + 1) for value in colour]
        near = [other for cell in product(*spans) for other in cells.get(cell, ())]
        near = [o for o in near if max(abs(a - b) for a, b in zip(o, colour, strict=True)) <= SAME_FLAT_COLOUR]
        if near:
            middle[image] = min(firsts[other] for other in near)
        else:
            firsts[colour] = image
            cells.setdefault(tuple(value // 8 for value in colour), []).append(colour)


def _links(fingerprints: Fingerprints, neighbours: Neighbours, block: Ints) -> Ints:
    """Pairs (n, 2) that are copies, of the images of a block and any others."""
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
    as_they_are = np.zeros(len(first), np.bool_)
    same_colour = ~found.inverted & (_colour_difference(first, second, as_they_are) <= SAME_COLOUR)  # (P,)
    plain = _is_plain(first, plane) | _is_plain(second, plane)  # (P,)
    return np.where(plain, same_colour & (found.score >= SIMILAR_PLAIN), found.score >= SIMILAR)


def _is_plain(fingerprints: Fingerprints, plane: Ints | int) -> npt.NDArray[np.bool_]:
    """(P, FINGERPRINT_BYTES) -> (P,)"""
    rows = np.arange(len(fingerprints))
    squares = np.square(coefficients(fingerprints)[rows, plane]).astype(np.int64)  # (P, 16, 16)
    few = squares.sum((1, 2)) ** 2 < FEW * (squares * squares).sum((1, 2))  # (P,)
    return few | (fingerprints[:, CONTRAST][rows, plane] < 2 * FAINT)


def _colour_difference(first: Fingerprints, second: Fingerprints, inverted: npt.NDArray[np.bool_]) -> Ints:
    """Greatest difference (P,) of the mean colours, in levels."""
    means = second[:, MEAN].astype(np.int64)  # (P, 3)
    means = np.where(inverted[:, None], 255 - means, means)
    return np.abs(means - first[:, MEAN]).max(axis=1)


def _how(fingerprints: Fingerprints, lead: Ints) -> list[str]:
    """How each image differs from its lead."""
    how = [""] * len(lead)
    for part in _parts(np.flatnonzero(lead != np.arange(len(lead))), PAIRS):
        firsts, seconds = fingerprints[lead[part]], fingerprints[part]
        words = np.full(len(part), "copy of a copy", dtype=object)  # (n,)
        words[(firsts == seconds).all(axis=1) | _is_flat(firsts)] = "same"
        for plane, start, reverse in product(range(PLANES), (crop_index(0, 0), crop_index(3, 3)), (False, True)):
            rest = np.flatnonzero(words == "copy of a copy")  # (r,)
            first, second = firsts[rest], seconds[rest]
            if reverse:
                first, second = second, first
            crops = np.full(len(rest), start)  # (r,)
            found = match(coefficients(first)[:, plane], coefficients(second)[:, plane], crops, crops, PROMISING)
            alike = _alike(found, first, second, plane)
            words[rest[alike]] = _words(found.take(alike), first[alike], second[alike], reverse, plane > 0)
        for image, said in zip(part.tolist(), words, strict=True):
            how[image] = said
    return how


def _words(found: Match, first: Fingerprints, second: Fingerprints, reverse: bool, luma_differs: bool) -> list[str]:
    """What was done to the second, or if reverse to the first, in words."""
    cut = np.maximum(_cut(found.down), _cut(found.across))  # (P,)
    limit = np.where(cut >= CROPPED, RECOLOURED_CROP, RECOLOURED)  # (P,)
    recoloured = luma_differs | (_colour_difference(first, second, found.inverted) >= limit)  # (P,)
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
