"""The images on the page, with what is said beneath them: mistakes, suspected labels, copies."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cnn.inference.gradcam import GradCam
from jobs.report.evaluation import Pair, RunEvaluation
from jobs.report.near_duplicates import Copy, Group
from jobs.report.thumbnails import overlay, read_rows, thumbnail
from pipeline.dataset.schema import COLUMN_CHUNK_ROWS
from pipeline.dataset.store import Dataset, Split


class ShownImage(NamedTuple):
    """A validation image.

    named  the probability of the class it is taken for;  true  and of its label
    heat   overlays, for these two classes, if there are any
    """

    src: str
    path: str
    label: str
    predicted: str
    named: float
    true: float
    heat: tuple[str, ...] = ()


class PairShown(NamedTuple):
    """A class taken for another, and images of that."""

    true: str
    predicted: str
    times: int
    of: int
    images: list[ShownImage]


class CopyShown(NamedTuple):
    """An image of a group of copies; `src` is empty where the dataset has it no more."""

    copy: Copy
    src: str


class GroupShown(NamedTuple):
    """A group of copies, the first few of them shown, those first that do not agree with others."""

    group: Group
    copies: list[CopyShown]


def show_pairs(data: Dataset, results: RunEvaluation, pairs: Sequence[Pair]) -> list[PairShown]:
    shown = _images(data, results, [row for pair in pairs for row in pair.rows])
    names = data.class_names
    return [
        PairShown(
            names[pair.true], names[pair.predicted], pair.times, pair.of, [shown[row] for row in pair.rows]
        )
        for pair in pairs
    ]


def show_worst(data: Dataset, results: RunEvaluation, rows: Sequence[int], cam: GradCam | None) -> list[ShownImage]:
    """Images with their overlays, or without where there is no `cam`."""
    shown = _images(data, results, rows)
    if not cam or not rows:
        return [shown[row] for row in rows]
    images = read_rows(data.val, rows)
    together = np.stack([images[row] for row in rows])  # (n, H, W, 3)
    evaluation = results.evaluation
    maps = [cam.maps(together, which[list(rows)]) for which in (evaluation.predicted, evaluation.labels)]
    return [
        shown[row]._replace(heat=tuple(overlay(images[row], map_) for map_ in both))
        for row, *both in zip(rows, *maps, strict=True)
    ]


def show_groups(data: Dataset, groups: Sequence[Group], most: int) -> list[GroupShown]:
    """Groups of copies with up to `most` images each."""
    picked = {group.number: _first_few(group.copies, most) for group in groups}
    wanted = {(copy.part, copy.path) for copies in picked.values() for copy in copies}
    sources: dict[tuple[str, str], str] = {}
    for part in (data.train, data.val):
        rows = {row: path for row, path in _paths_of(part) if (part.name, path) in wanted}
        images = read_rows(part, list(rows))
        sources |= {(part.name, path): thumbnail(images[row]) for row, path in rows.items()}
    return [
        GroupShown(
            group, [CopyShown(copy, sources.get((copy.part, copy.path), "")) for copy in picked[group.number]]
        )
        for group in groups
    ]


def _images(data: Dataset, results: RunEvaluation, rows: Sequence[int]) -> dict[int, ShownImage]:
    """Rows of the validation part with their images and what is known of them, without overlays."""
    evaluation, names, wanted = results.evaluation, data.class_names, set(rows)
    images = read_rows(data.val, rows)
    paths = {row: path for row, path in _paths_of(data.val) if row in wanted}
    return {
        row: ShownImage(
            thumbnail(images[row]),
            paths[row],
            names[int(evaluation.labels[row])],
            names[int(evaluation.predicted[row])],
            float(results.named[row]),
            float(results.true[row]),
        )
        for row in wanted
    }


def _first_few(copies: Sequence[Copy], most: int) -> list[Copy]:
    """Of a large group not its first alone: one of each label and part, then the rest in order."""
    seen: set[tuple[str, str]] = set()
    kinds: list[Copy] = []
    rest: list[Copy] = []
    for copy in copies:
        kind = (copy.label, copy.part)
        (rest if kind in seen else kinds).append(copy)
        seen.add(kind)
    few = (kinds + rest)[:most]
    return [copy for copy in copies if copy in few]


def _paths_of(part: Split) -> Iterator[tuple[int, str]]:
    """All rows with their paths, of which only some are in memory at a time."""
    for start in range(0, part.rows, COLUMN_CHUNK_ROWS):
        paths = part.read_column("paths", start, min(start + COLUMN_CHUNK_ROWS, part.rows))  # (n,)
        yield from enumerate(map(str, paths), start)
