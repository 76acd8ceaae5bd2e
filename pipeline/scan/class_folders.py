"""A folder -> the sorted list of its images, with classes and parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import ListingError

SplitName = Literal["train", "val"]

# Folders that hold a part each. Of several for val the first here is taken: where both val/ and test/
# are there, test/ is kept for a last, honest look.
VAL_FOLDERS = ("val", "valid", "validation", "test")
SPLIT_FOLDERS = ("train", *VAL_FOLDERS)

# What file managers and archivers leave behind. All names that begin with a dot are skipped as well.
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}

LAYOUT = "expected one folder of images per class, or train/ and val/ with one folder per class each"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that lies in a class folder; whether it is an image, only decoding tells."""

    path: str  # relative to the root, with '/' on every system
    class_index: int
    part: SplitName | None  # None where the folders do not say


@dataclass(frozen=True)
class Listing:
    root: Path
    classes: tuple[str, ...]  # sorted; a class' index is its place here
    images: tuple[ImageFile, ...]  # sorted by path
    skipped: tuple[str, ...]  # files and folders directly in the root that belong to no class

    @property
    def has_splits(self) -> bool:
        return self.images[0].part is not None


def list_images(root: Path) -> Listing:
    """List the files of a folder of classes.

    Every file in a class folder, however deep, is listed, whatever its name: one that is no image is
    for the build to report, not for us to drop. Hidden files and folders, and clutter, are left out.
    Raises ListingError where the folder is not laid out as one.
    """
    root = Path(root)
    folders, loose = _top(root)
    if not folders:
        if loose:
            raise ListingError(
                f"{LAYOUT}; found {_count(len(loose), 'file')} and no folder in {root}: move each image"
                " into a folder named after its class"
            )
        raise ListingError(f"{LAYOUT}; found nothing in {root}: check the path")
    if folders == ["train"]:
        raise ListingError(f"{LAYOUT}; found only train/ in {root}: give {root / 'train'} itself")
    by_part: list[tuple[SplitName | None, str]] = [(None, "")]
    skipped = loose
    if "train" in folders and set(folders) <= set(SPLIT_FOLDERS):
        val = next(name for name in VAL_FOLDERS if name in folders)
        by_part = [("train", "train/"), ("val", f"{val}/")]
        skipped = sorted(skipped + [name for name in folders if name not in ("train", val)])
    files = {part: _files_by_class(root, prefix) for part, prefix in by_part}
    classes = _checked_classes(root, files)
    images = [
        ImageFile(path, classes.index(name), part)
        for part, by_class in files.items()
        for name, paths in by_class.items()
        for path in paths
    ]
    images.sort(key=lambda image: image.path)
    return Listing(root, tuple(classes), tuple(images), tuple(skipped))


def _top(root: Path) -> tuple[list[str], list[str]]:
    """The names of folders and of files directly in the root."""
    if not os.path.lexists(root):
        raise ListingError(f"expected a folder of images, found nothing at {root}: check the path")
    if not root.is_dir():
        raise ListingError(f"expected a folder of images, found a file at {root}: give the folder it is in")
    return _entries(root)


def visible_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, as it comes, without what is hidden and without clutter.

    Raises ListingError where the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower() not in CLUTTER:
                    yield entry
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        message = f"expected a folder that can be read, found {reason} at {folder}: check its rights"
        raise ListingError(message) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder or a link to one. A link that leads nowhere counts as a file: decoding will name it."""
    try:
        return entry.is_dir()
    except OSError:  # as of a link to itself
        return False


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The names of folders and of files, each sorted."""
    folders: list[str] = []
    files: list[str] = []
    for entry in visible_entries(folder):
        (folders if is_folder(entry) else files).append(entry.name)
    return sorted(folders), sorted(files)


def _walk(folder: Path, prefix: str, above: tuple[Path, ...] = ()) -> Iterator[str]:
    """Paths of all files below, each with the prefix before it. Follows links, but not in circles."""
    here = folder.resolve()
    if here in above:
        return
    folders, files = _entries(folder)
    for name in files:
        yield prefix + name
    for name in folders:
        yield from _walk(folder / name, f"{prefix}{name}/", (*above, here))


def _files_by_class(root: Path, prefix: str) -> dict[str, list[str]]:
    folders, loose = _entries(root / prefix)
    if not folders:
        found = _count(len(loose), "file") if loose else "nothing"
        raise ListingError(
            f"expected one folder per class in {root / prefix}, found {found} and no folder: move each"
            " image into a folder named after its class"
        )
    return {name: list(_walk(root / prefix / name, f"{prefix}{name}/")) for name in folders}


def _checked_classes(root: Path, files: dict[SplitName | None, dict[str, list[str]]]) -> list[str]:
    for part, by_class in files.items():
        for name, paths in by_class.items():
            if not paths and part != "val":  # a class may have nothing to validate on
                where = root / (part or "") / name
                raise ListingError(
                    f"expected images in every class, found none in {where}: add some or remove the folder"
                )
    first, *rest = files.values()
    for by_class in rest:
        unknown = sorted(set(by_class) - set(first))
        if unknown:
            raise ListingError(
                f"expected every class of val to be in train, found {', '.join(unknown)} only in val of"
                f" {root}: add it to train or remove it from val"
            )
    classes = sorted(first)
    if len(classes) < 2:
        raise ListingError(
            f"expected at least two classes, found only {classes[0]} in {root}: give the folder above, or add"
            " a class to tell it from"
        )
    return classes


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
