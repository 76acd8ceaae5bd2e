"""List the images of a folder of classes, sorted, with the class, split, size and time of each."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

from logpose.common.errors import printable
from pipeline.errors import ListingError
from pipeline.scan.source_files import Source, SourceFile, SplitName
from pipeline.scan.tree import descend, is_folder, visible_entries

# Names of the validation folder, by precedence: where val/ and test/ both exist, test/ is left for a final evaluation.
VAL_FOLDERS = ("val", "valid", "validation", "test")
SPLIT_FOLDERS = ("train", *VAL_FOLDERS)

EXPECTED_LAYOUT = "expected one folder of images per class, or train/ and val/ with one folder per class each"


def list_images(root: Path) -> Source:
    """List the files of a folder of classes.

    Lists every file in a class folder, however deep and whatever its name: the build reports those that are not images.
    Leaves out hidden files and folders, and clutter.
    Raises ListingError where the folder is not laid out as expected.
    """
    root = Path(root)
    if not os.path.lexists(root):
        raise ListingError(f"expected a folder of images, found nothing at {root}: check the path")
    if not root.is_dir():
        raise ListingError(f"expected a folder of images, found a file at {root}: give the folder it is in")
    folders, skipped = _folders_and_files(root)
    if not folders:
        if skipped:
            raise ListingError(
                f"{EXPECTED_LAYOUT}; found {_plural(len(skipped), 'file')} and no folder in {root}: move each image"
                " into a folder named after its class, or give the folder above if this is one class"
            )
        raise ListingError(f"{EXPECTED_LAYOUT}; found nothing in {root}: check the path")
    if folders == ["train"]:
        raise ListingError(f"{EXPECTED_LAYOUT}; found only train/ in {root}: give {root / 'train'} itself")
    prefixes: dict[SplitName | None, str] = {None: ""}
    if "train" in folders and set(folders) <= set(SPLIT_FOLDERS):
        val = next(name for name in VAL_FOLDERS if name in folders)
        prefixes = {"train": "train/", "val": f"{val}/"}
        skipped = sorted(skipped + [name for name in folders if name not in ("train", val)])
    files = {split: _files_by_class(root, prefix) for split, prefix in prefixes.items()}
    classes = _check_classes(root, files)
    listed = sorted(
        (path, label, split)
        for split, by_class in files.items()
        for label, name in enumerate(classes)
        for path in by_class.get(name, ())
    )
    sources = tuple(_stat_file(root, *file) for file in listed)
    return Source(root, tuple(map(printable, classes)), sources, tuple(skipped))


def _stat_file(root: Path, path: str, label: int, split: SplitName | None) -> SourceFile:
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116  # in half the time of pathlib's
    except (OSError, ValueError):  # decoding will fail too, and report it
        return SourceFile(path, label, split, -1, -1)
    return SourceFile(path, label, split, status.st_size, status.st_mtime_ns)


def _folders_and_files(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files directly in a folder, each sorted."""
    folders: list[str] = []
    files: list[str] = []
    for entry in visible_entries(folder):
        (folders if is_folder(entry) else files).append(entry.name)
    return sorted(folders), sorted(files)


def _sorted_entries(folder: Path, prefix: str) -> Generator[str, None, None]:
    yield from sorted(f"{entry.name}/" if is_folder(entry) else entry.name for entry in visible_entries(folder))


def _files_by_class(root: Path, prefix: str) -> dict[str, list[str]]:
    folders, files = _folders_and_files(root / prefix)
    if not folders:
        found = _plural(len(files), "file") if files else "nothing"
        raise ListingError(
            f"expected one folder per class in {root / prefix}, found {found} and no folder: move each"
            " image into a folder named after its class"
        )
    return {
        name: [f"{prefix}{name}/{path}" for path in descend(root / prefix / name, _sorted_entries)] for name in folders
    }


def _check_classes(root: Path, files: dict[SplitName | None, dict[str, list[str]]]) -> list[str]:
    """The sorted class names. Raises ListingError unless there are two or more, with images to train on in each."""
    for split, by_class in files.items():
        for name, paths in by_class.items():
            if not paths and split != "val":  # a class may have no validation images
                raise ListingError(
                    f"expected images in every class, found none in {root / (split or '') / name}: add some or remove"
                    " the folder"
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
            f"expected at least two classes, found only {classes[0]} in {root}: {_remedy(root, classes[0])}"
        )
    return classes


def _remedy(root: Path, only: str) -> str:
    """What to do about a folder with one class: it may be one level too high, or one too low."""
    folders, files = _folders_and_files(root / only)
    if len(folders) > 1 and not files:
        return f"give {root / only} itself, whose folders look like the classes"
    return "add another class"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
