"""Group near-duplicates by their fingerprints.

Near-duplicates differ only by resizing, recompression, mirroring, rotation by quarter turns, inversion, recolouring or
slight cropping.

    fingerprints ──identical ones──▶ one of each ──candidates, matched──▶ links ──star clusters──▶ groups

A train/validation split must not separate the images of a group: a network that was trained on one recognises the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import product

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from pipeline.duplicates.fingerprint import COEFFICIENTS, CONTRAST, MEAN, PLANES
from pipeline.duplicates.groups import DuplicateGroups
from pipeline.duplicates.matching import LEFT_RIGHT, TOP_BOTTOM, TRANSPOSED, Match, coefficients, crop_index, match
from pipeline.duplicates.neighbours import Neighbours, blocks

Fingerprints = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

# Two images are near-duplicates from this correlation of their coefficients on, one cropped and reoriented to match
# the other. Of planted duplicates, 2 in 1000 score less (of those of 32 px at JPEG quality 30, up to 1 in 100). Hardly
# any other pair scores more; from 0.85 on, drawings of similar objects do, such as two guitars.
MIN_CORRELATION = 0.9

# An image has low texture if its contrast is below MIN_TEXTURE_CONTRAST levels of grey, or if few coefficients matter:
# their participation ratio, (sum of squares)**2 / sum of fourth powers, is below MIN_PARTICIPATION_RATIO. Any two
# gradients correlate, or two horizons. Of the images of CIFAR-10, 1 in 400 has low texture.
MIN_TEXTURE_CONTRAST = 6
MIN_PARTICIPATION_RATIO = 10

# Low-texture images must correlate more, have the same mean colour, and not be inverted.
MIN_LOW_TEXTURE_CORRELATION = 0.98
MAX_COLOUR_DIFFERENCE = 6  # of mean colours, in levels
MAX_FLAT_COLOUR_DIFFERENCE = 2  # where there is no texture at all

# Mean colours that differ by so many levels are reported as recoloured. A crop alone shifts them a little.
MIN_RECOLOURING, MIN_RECOLOURING_CROPPED = 8, 20
MIN_CROP = 2  # hundredths of an axis, from which an image is reported as cropped

RADIUS = 2  # links from the centre of a group to its farthest members

BLOCK_IMAGES = 1024  # images whose neighbours are searched at a time
BLOCK_PAIRS = 1024  # matched at a time

ORIENTATION_NAMES = {
    0: (),
    LEFT_RIGHT: ("flipped",),
    TOP_BOTTOM: ("flipped", "rotated 180"),
    LEFT_RIGHT | TOP_BOTTOM: ("rotated 180",),
    TRANSPOSED: ("flipped", "rotated 270"),
    TRANSPOSED | LEFT_RIGHT: ("rotated 270",),
    TRANSPOSED | TOP_BOTTOM: ("rotated 90",),
    TRANSPOSED | LEFT_RIGHT | TOP_BOTTOM: ("flipped", "rotated 90"),
}


def find_duplicates(
    fingerprints: Fingerprints, workers: int = 1, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> DuplicateGroups:
    """Group the images that are near-duplicates of one another.

    fingerprints  (N, FINGERPRINT_BYTES), as made by `pipeline.duplicates.fingerprint`; may be a memory map
    workers       threads; the result is the same for any number
    on_progress   called with the number of images done and their total, from the calling thread

    Needs a few hundred bytes an image, besides the fingerprints.
    """
    total = len(fingerprints)
    centre, distinct = _group_identical(fingerprints)
    flat = np.concatenate([_is_flat(fingerprints[block]) for block in blocks(distinct, BLOCK_IMAGES)])  # (n,)
    _group_flat(fingerprints, distinct[flat], centre)
    links = [np.empty((0, 2), np.int64)]
    done = total - np.count_nonzero(~flat)
    for searched, found in _find_links(fingerprints, distinct[~flat], workers):
        links.append(found)
        done += searched
        on_progress(int(done), total)
    centres = _group_linked(np.concatenate(links), centre, RADIUS)
    # An image with a thousand near-equals is linked to only a few of them, so they fall into several groups: merge
    # groups by their centres until none are linked.
    while len(links := [found for _, found in _find_links(fingerprints, centres, workers) if len(found)]):
        centres = _group_linked(np.concatenate(links), centre, 1)
    while not np.array_equal(centre, centre[centre]):
        centre = centre[centre]
    representative = np.full(total, total)  # (N,)
    np.minimum.at(representative, centre, np.arange(total))
    representative = representative[centre]
    return DuplicateGroups(representative, _describe_transforms(fingerprints, representative))


def _find_links(fingerprints: Fingerprints, images: Ints, workers: int) -> Iterator[tuple[int, Ints]]:
    """Yield the number of images of each block, and its pairs (n, 2) of near-duplicates among `images`."""
    if not len(images):
        return
    neighbours = Neighbours(fingerprints, images)
    work = blocks(images, BLOCK_IMAGES)
    # Each worker multiplies matrices of its own; with BLAS threads on top, they would all wait for one another.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(max(1, workers)) as pool:
        for block, found in zip(work, pool.map(lambda b: _links(fingerprints, neighbours, b), work), strict=True):
            yield len(block), found


def _group_identical(fingerprints: Fingerprints) -> tuple[Ints, Ints]:
    """The first image with the same fingerprint, for each image (N,); and these first images (n,).

    Without this step, each of a thousand identical images would have only the others as neighbours.
    """
    first: dict[bytes, int] = {}
    identical = np.empty(len(fingerprints), np.int64)  # (N,)
    for image in range(len(fingerprints)):
        digest = blake2b(fingerprints[image].tobytes(), digest_size=16).digest()
        identical[image] = first.setdefault(digest, image)
    return identical, np.fromiter(first.values(), np.int64, len(first))


def _group_linked(links: Ints, centre: Ints, radius: int) -> Ints:
    """Set the `centre` (N,) of linked images, links (n, 2), to that of their group; return the centres (m,), sorted.

    Star clustering (Aslam, Pelekhov and Rus, 2004) with a radius in links: the image with the most links is a centre,
    and all that `radius` links reach from it is its group; then the same among the rest. Connected components would be
    too large: a shape on white matches the same shape shifted a little, that one a further shift, and so on, until all
    drawings are one group.
    """
    linked: dict[int, set[int]] = {}
    for one, other in links.tolist():
        linked.setdefault(one, set()).add(other)
        linked.setdefault(other, set()).add(one)
    centres = []
    for image in sorted(linked, key=lambda image: (-len(linked[image]), image)):
        if image not in linked:
            continue
        group = border = {image}
        for _ in range(radius):
            border = {other for one in border for other in linked[one] if other in linked} - group
            group = group | border
        centres.append(image)
        centre[list(group)] = image
        for member in group:
            del linked[member]
    return np.array(sorted(centres), np.int64)


def _is_flat(fingerprints: Fingerprints) -> npt.NDArray[np.bool_]:
    """Whether each image has one flat colour, (n,), from its fingerprint (n, FINGERPRINT_BYTES)."""
    return np.all(fingerprints[:, :COEFFICIENTS] == 0, axis=1)


def _group_flat(fingerprints: Fingerprints, flat: Ints, centre: Ints) -> None:
    """Group flat images: each joins the first one of about its colour, so that groups cannot form chains."""
    cells: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # colours of centres, by their cell of the colour cube
    firsts: dict[tuple[int, ...], int] = {}
    for image in flat.tolist():
        colour = tuple(fingerprints[image, MEAN].tolist())
        limit = MAX_FLAT_COLOUR_DIFFERENCE
        spans = [range((value - limit) // 8, (value + limit) // 8 + 1) for value in colour]
        near = [other for cell in product(*spans) for other in cells.get(cell, ())]
        near = [other for other in near if max(abs(a - b) for a, b in zip(other, colour, strict=True)) <= limit]
        if near:
            centre[image] = min(firsts[other] for other in near)
        else:
            firsts[colour] = image
            cells.setdefault(tuple(value // 8 for value in colour), []).append(colour)


def _links(fingerprints: Fingerprints, neighbours: Neighbours, block: Ints) -> Ints:
    """Pairs (n, 2) of near-duplicates: an image of the block, and any other."""
    candidates = neighbours.candidates(block)
    links = []
    for pairs in blocks(np.arange(len(candidates.first)), BLOCK_PAIRS):
        first, second = fingerprints[candidates.first[pairs]], fingerprints[candidates.second[pairs]]
        plane = candidates.plane[pairs]
        rows = np.arange(len(pairs))
        planes = coefficients(first)[rows, plane], coefficients(second)[rows, plane]  # (p, 16, 16) each
        found = match(*planes, candidates.crop_y[pairs], candidates.crop_x[pairs])
        similar = _is_duplicate(found, first, second, plane)  # (p,)
        links.append(np.stack([candidates.first[pairs][similar], candidates.second[pairs][similar]], axis=1))
    return np.concatenate(links)


def _is_duplicate(found: Match, first: Fingerprints, second: Fingerprints, plane: Ints | int) -> npt.NDArray[np.bool_]:
    """Whether each pair is near-duplicates, (P,): fingerprints (P, FINGERPRINT_BYTES), matched in a plane."""
    same_colour = ~found.inverted & (_colour_difference(first, second, found.inverted) <= MAX_COLOUR_DIFFERENCE)  # (P,)
    low_texture = _has_low_texture(first, plane) | _has_low_texture(second, plane)  # (P,)
    return np.where(
        low_texture, same_colour & (found.score >= MIN_LOW_TEXTURE_CORRELATION), found.score >= MIN_CORRELATION
    )


def _has_low_texture(fingerprints: Fingerprints, plane: Ints | int) -> npt.NDArray[np.bool_]:
    """Whether each image has low texture in a plane, (P,), from its fingerprint (P, FINGERPRINT_BYTES)."""
    rows = np.arange(len(fingerprints))
    squares = np.square(coefficients(fingerprints)[rows, plane]).astype(np.int64)  # (P, 16, 16)
    few = squares.sum((1, 2)) ** 2 < MIN_PARTICIPATION_RATIO * (squares * squares).sum((1, 2))  # (P,)
    return few | (fingerprints[:, CONTRAST][rows, plane] < 2 * MIN_TEXTURE_CONTRAST)


def _colour_difference(first: Fingerprints, second: Fingerprints, inverted: npt.NDArray[np.bool_]) -> Ints:
    """Greatest difference (P,) of the mean colours over the channels, in levels."""
    means = second[:, MEAN].astype(np.int64)  # (P, 3)
    means = np.where(inverted[:, None], 255 - means, means)
    return np.abs(means - first[:, MEAN]).max(axis=1)


def _describe_transforms(fingerprints: Fingerprints, representative: Ints) -> list[str]:
    """Compute `DuplicateGroups.transforms` for the representatives (N,)."""
    transforms = [""] * len(representative)
    for members in blocks(np.flatnonzero(representative != np.arange(len(representative))), BLOCK_PAIRS):
        firsts, seconds = fingerprints[representative[members]], fingerprints[members]
        texts = np.full(len(members), "indirect", dtype=object)  # (n,)
        texts[(firsts == seconds).all(axis=1) | _is_flat(firsts)] = "same"
        for plane, crop, reverse in product(range(PLANES), (crop_index(0, 0), crop_index(3, 3)), (False, True)):
            rest = np.flatnonzero(texts == "indirect")  # (r,)
            first, second = firsts[rest], seconds[rest]
            if reverse:
                first, second = second, first
            crops = np.full(len(rest), crop)  # (r,)
            found = match(coefficients(first)[:, plane], coefficients(second)[:, plane], crops, crops)
            similar = _is_duplicate(found, first, second, plane)  # (r,)
            texts[rest[similar]] = _name_transforms(
                found.take(similar), first[similar], second[similar], reverse, plane > 0
            )
        for image, text in zip(members.tolist(), texts, strict=True):
            transforms[image] = text
    return transforms


def _name_transforms(
    found: Match, first: Fingerprints, second: Fingerprints, reverse: bool, luma_differs: bool
) -> list[str]:
    """The transforms from each first image to its second, or from the second to the first if `reverse`, in words."""
    crop = np.maximum(_crop_percent(found.crop_y), _crop_percent(found.crop_x))  # (P,)
    limit = np.where(crop >= MIN_CROP, MIN_RECOLOURING_CROPPED, MIN_RECOLOURING)  # (P,)
    recoloured = luma_differs | (_colour_difference(first, second, found.inverted) >= limit)  # (P,)
    texts = []
    for pair, orientation in enumerate(found.orientation.tolist()):
        if reverse and orientation in (TRANSPOSED | LEFT_RIGHT, TRANSPOSED | TOP_BOTTOM):
            orientation ^= LEFT_RIGHT | TOP_BOTTOM  # the inverse of a quarter turn; all others are their own inverses
        names = [
            *ORIENTATION_NAMES[orientation],
            *(["inverted"] if found.inverted[pair] else []),
            *(["cropped"] if crop[pair] >= MIN_CROP else []),
            *(["recoloured"] if recoloured[pair] else []),
        ]
        texts.append(", ".join(names) or "same")
    return texts


def _crop_percent(crops: Ints) -> Ints:
    """Hundredths of an axis that each crop removes, at both ends together."""
    return crops // crop_index(1, 0) + crops % crop_index(1, 0)
