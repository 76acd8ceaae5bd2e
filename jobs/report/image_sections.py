"""Images of the report with their captions: confusions, possible label errors, near-duplicates."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cnn.inference.gradcam import GradCam
from jobs.report.evaluation import Confusion, ValidationResult
from jobs.report.near_duplicates import DuplicateGroup, NearDuplicate
from jobs.report.thumbnails import overlay, read_rows, thumbnail
from pipeline.dataset.schema import COLUMN_CHUNK_ROWS
from pipeline.dataset.store import Dataset, Split


class ValidationImage(NamedTuple):
    """A validation image; `src` and the heatmaps are data URIs.

    confidence        the probability of the predicted class
    true_probability  the probability of the label
    heatmaps          for the predicted class and for the label, or none
    """

    src: str
    path: str
    label: str
    predicted: str
    confidence: float
    true_probability: float
    heatmaps: tuple[str, ...] = ()


class ConfusionImages(NamedTuple):
    """A `Confusion` with class names, and images of it."""

    true: str
    predicted: str
    wrong: int
    total: int
    images: list[ValidationImage]


class DuplicateImage(NamedTuple):
    """A near-duplicate; `src` is empty where the dataset does not have the image."""

    duplicate: NearDuplicate
    src: str


class GroupImages(NamedTuple):
    """A group of near-duplicates, and some of its images."""

    group: DuplicateGroup
    images: list[DuplicateImage]


def confusion_images(data: Dataset, result: ValidationResult, confusions: Sequence[Confusion]) -> list[ConfusionImages]:
    """Load the images of confusions. Raises DamageError where one is damaged."""
    images = _images(data, result, [row for confusion in confusions for row in confusion.rows])
    names = data.class_names
    return [
        ConfusionImages(names[each.true], names[each.predicted], each.wrong, each.total, [images[r] for r in each.rows])
        for each in confusions
    ]


def images_with_heatmaps(
    data: Dataset, result: ValidationResult, rows: Sequence[int], cam: GradCam | None
) -> list[ValidationImage]:
    """Load validation images, with heatmaps where there is a `cam`. Raises DamageError where one is damaged."""
    found = _images(data, result, rows)
    if not cam or not rows:
        return [found[row] for row in rows]
    pixels = read_rows(data.val, rows)
    batch = np.stack([pixels[row] for row in rows])  # (n, H, W, 3)
    evaluation = result.evaluation
    maps = [cam.maps(batch, classes[list(rows)]) for classes in (evaluation.predicted, evaluation.labels)]
    return [
        found[row]._replace(heatmaps=tuple(overlay(pixels[row], heat) for heat in heats))
        for row, *heats in zip(rows, *maps, strict=True)
    ]


def group_images(data: Dataset, groups: Sequence[DuplicateGroup], count: int) -> list[GroupImages]:
    """Load up to `count` images of each group. Raises DamageError where one is damaged."""
    selected = {group.number: _select_members(group.members, count) for group in groups}
    wanted = {(member.split, member.path) for members in selected.values() for member in members}
    sources: dict[tuple[str, str], str] = {}
    for split in (data.train, data.val):
        rows = {row: path for row, path in _iter_paths(split) if (split.name, path) in wanted}
        pixels = read_rows(split, list(rows))
        sources |= {(split.name, path): thumbnail(pixels[row]) for row, path in rows.items()}
    return [
        GroupImages(
            group,
            [DuplicateImage(each, sources.get((each.split, each.path), "")) for each in selected[group.number]],
        )
        for group in groups
    ]


def _images(data: Dataset, result: ValidationResult, rows: Sequence[int]) -> dict[int, ValidationImage]:
    """Rows of the validation split -> images without heatmaps."""
    evaluation, names, wanted = result.evaluation, data.class_names, set(rows)
    pixels = read_rows(data.val, rows)
    paths = {row: path for row, path in _iter_paths(data.val) if row in wanted}
    return {
        row: ValidationImage(
            thumbnail(pixels[row]),
            paths[row],
            names[int(evaluation.labels[row])],
            names[int(evaluation.predicted[row])],
            float(result.confidence[row]),
            float(result.true_probability[row]),
        )
        for row in wanted
    }


def _select_members(members: Sequence[NearDuplicate], count: int) -> list[NearDuplicate]:
    """Up to `count` members in their order: one of each label and split if possible, then the first others."""
    seen: set[tuple[str, str]] = set()
    distinct: list[NearDuplicate] = []
    others: list[NearDuplicate] = []
    for member in members:
        kind = (member.label, member.split)
        (others if kind in seen else distinct).append(member)
        seen.add(kind)
    selected = (distinct + others)[:count]
    return [member for member in members if member in selected]


def _iter_paths(split: Split) -> Iterator[tuple[int, str]]:
    """All rows with their paths; only a chunk of these is in memory at a time."""
    for start in range(0, split.rows, COLUMN_CHUNK_ROWS):
        paths = split.read_column("paths", start, min(start + COLUMN_CHUNK_ROWS, split.rows))  # (n,)
        yield from enumerate(map(str, paths), start)
