"""List the images of a folder of classes, sorted, with the class, split, size and time of each."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Generator, Iterable
from pathlib import Path

from logpose.common.errors import printable
from pipeline.errors import ListingError
from pipeline.faults import status_of, status_of_listed
from pipeline.scan.source_files import Source, SourceFile, SplitName
from pipeline.scan.split_folders import (
    TRAIN_NAMES,
    VAL_NAMES,
    hints_at_split,
    hints_at_training,
    split_name,
    split_pair,
)
from pipeline.scan.tree import descend, is_folder, visible_entries

EXPECTED_LAYOUT = "expected one folder of images per class, or train/ and val/ with one folder per class each"

# Only to tell a class folder from one of class folders, and an image from a table; decoding goes by the bytes.
IMAGE_ENDINGS = {
    "jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "tif", "tiff", "webp", "avif", "heic", "heif", "jp2", "ppm",
    "pgm", "pbm", "ico", "tga",
}  # fmt: skip


def list_images(root: Path) -> Source:
    """List the files of a folder of classes.

    Lists every file in a class folder, however deep and whatever its name: the build reports those that are not images.
    Leaves out hidden files and folders, and clutter.
    Raises ListingError where the folder is not laid out as expected, AccessError where it may not be read, ReadError
    where the system fails to read it.
    """
    root = Path(root)
    if (status := status_of(root)) is None:
        raise ListingError(f"expected a folder of images, found nothing at {root}: check the path")
    if not stat.S_ISDIR(status.st_mode):
        raise ListingError(f"expected a folder of images, found a file at {root}: give the folder it is in")
    folders, skipped = _folders_and_files(root)
    if not folders:
        if skipped:
            raise ListingError(
                f"{EXPECTED_LAYOUT}; found {_plural(len(skipped), 'file')} and no folder in {root}: move each image"
                " into a folder named after its class, or give the folder above if this is one class"
            )
        raise ListingError(f"{EXPECTED_LAYOUT}; found nothing in {root}: check the path")
    if len(folders) == 1 and split_name(folders[0]) in TRAIN_NAMES:
        raise ListingError(f"{EXPECTED_LAYOUT}; found only {folders[0]}/ in {root}: give {root / folders[0]} itself")
    prefixes: dict[SplitName | None, str] = {None: ""}
    if splits := _split_folders(root, folders):
        prefixes = {split: f"{name}/" for split, name in splits.items()}
        tops = {name.partition("/")[0] for name in splits.values()}
        skipped = sorted(skipped + [name for name in folders if name not in tops])
    files = {split: _files_by_class(root, prefix, skipped) for split, prefix in prefixes.items()}
    classes = _check_classes(root, files, prefixes)
    listed = sorted(
        (path, label, split)
        for split, by_class in files.items()
        for label, name in enumerate(classes)
        for path in by_class.get(name, ())
    )
    sources = tuple(_stat_file(root, *file) for file in listed)
    return Source(root, tuple(map(printable, classes)), sources, tuple(sorted(skipped)))


def _split_folders(root: Path, folders: list[str]) -> dict[SplitName, str] | None:
    """The folders of train and val, or None if the folders are classes.

    They are splits if all are named like splits; or if two of them are and hold folders only, as train/, val/ and
    extra/ may: a class may be called train.
    """
    named = {folder: name for folder in folders if (name := split_name(folder))}
    train = [folder for folder, name in named.items() if name in TRAIN_NAMES]
    others = sorted((VAL_NAMES.index(name), folder) for folder, name in named.items() if name in VAL_NAMES)
    if not train or not others:
        return None
    val = [folder for rank, folder in others if rank == others[0][0]]
    if len(named) < len(folders) and not all(_holds_only_folders(root / folder) for folder in (*train, *val)):
        return None
    for same in (train, val):
        if len(same) > 1:
            raise ListingError(
                f"expected one folder for each split, found {' and '.join(same)} in {root}: merge or rename them"
            )
    return {"train": _innermost(root, train[0]), "val": _innermost(root, val[0])}


def _innermost(root: Path, name: str) -> str:
    """The folder of a split, or the one of the same name that is all there is in it: training_set/training_set/."""
    if (root / name / name).is_dir() and _folders_and_files(root / name) == ([name], []):
        return f"{name}/{name}"
    return name


def _holds_only_folders(folder: Path) -> bool:
    folders, files = _folders_and_files(folder)
    return bool(folders) and not any(map(_looks_like_image, files))


def _looks_like_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_ENDINGS


def _stat_file(root: Path, path: str, label: int, split: SplitName | None) -> SourceFile:
    full = f"{root}/{path}"
    status = status_of_listed(lambda: os.stat(full), full)  # noqa: PTH116  # in half the time of pathlib's
    if status is None:  # decoding will fail too, and report it
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


def _files_by_class(root: Path, prefix: str, skipped: list[str]) -> dict[str, list[str]]:
    """The files of each class folder; those beside them are added to `skipped`."""
    folders, files = _folders_and_files(root / prefix)
    if not folders:
        found = f"{_plural(len(files), 'file')} and no folder" if files else "nothing"
        raise ListingError(
            f"expected one folder per class in {root / prefix}, found {found}: move each image into a folder named"
            " after its class, or give a folder that holds the class folders alone: it is split"
        )
    skipped += [prefix + name for name in files] if prefix else []
    return {
        name: [f"{prefix}{name}/{path}" for path in descend(root / prefix / name, _sorted_entries)] for name in folders
    }


def _check_classes(
    root: Path, files: dict[SplitName | None, dict[str, list[str]]], prefixes: dict[SplitName | None, str]
) -> list[str]:
    """The sorted class names. Raises ListingError unless there are two or more, with images to train on in each."""
    for split, by_class in files.items():
        folder = root / prefixes[split]
        _check_names(folder, by_class)
        for name, paths in by_class.items():
            if not paths and split != "val":  # a class may have no validation images
                raise ListingError(
                    f"expected images in every class, found none in {folder / name}: add some or remove the folder"
                )
        if split != "val":
            _check_depth(folder, by_class, len(prefixes[split]))
    first, *rest = files.values()
    for by_class in rest:
        unknown = sorted(set(by_class) - set(first))
        if unknown:
            alike = {_folded(name): name for name in first}
            twin = alike.get(_folded(unknown[0]))
            remedy = f"give it the name of {twin!a} in train" if twin else "add it to train or remove it from val"
            raise ListingError(
                f"expected every class of val to be in train, found {', '.join(unknown)} only in val of"
                f" {root}: {remedy}"
            )
    classes = sorted(first)
    if len(classes) < 2:
        raise ListingError(f"expected at least two classes, found only {classes[0]} in {root}: add another class")
    return classes


def _check_depth(root: Path, by_class: dict[str, list[str]], prefix: int) -> None:
    """Raise ListingError where folders that should be classes hold the classes, or are the parts of a split."""
    flat, deep = [], {}  # folders that hold images, and those that hold only folders, with the names of these
    for name, paths in by_class.items():
        inside = [path[prefix + len(name) + 1 :] for path in paths]
        below = {path.partition("/")[0] for path in inside if "/" in path}
        if any(_looks_like_image(path) or not (below or "." in path) for path in inside if "/" not in path):
            flat.append(name)
        elif below:
            deep[name] = below
    found = f"only folders in {', '.join([*deep][:4])}{' and others' if len(deep) > 4 else ''} of {root}"
    up = "move the images up into their class folder"
    one = f"give {root / next(iter(deep))} itself" if len(deep) == 1 else "give one of these folders"
    is_split = any(map(hints_at_training if flat else hints_at_split, deep))
    if is_split and (flat or len(deep) > 1):
        raise ListingError(
            f"{EXPECTED_LAYOUT}; found {found}: rename the folders of a split to train and val, {one}, or {up}"
        )
    same = set.union(*deep.values()) if len(deep) > 1 else set()
    if deep and not flat and (len(same) != 1 or any(map(hints_at_split, same))):  # one: a/images/, b/images/
        raise ListingError(f"{EXPECTED_LAYOUT}; found {found}: {one}, or {up}")
    if pair := split_pair(flat):
        raise ListingError(
            f"{EXPECTED_LAYOUT}; found images in {pair[0]} and in {pair[1]} of {root}, which look like the parts of a"
            " split: rename them to train and val, and move each image into a folder named after its class"
        )


def _check_names(root: Path, names: Iterable[str]) -> None:
    """Raise ListingError if two classes have one name, written in two forms of Unicode, as macOS and Linux do."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", printable(name)), name)
        if other != name:
            raise ListingError(
                f"expected a name of its own for each class, found {name!a} and {other!a} in {root}, which are the"
                " same text: merge the two folders"
            )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def alike_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of class names that differ only in case."""
    seen: dict[str, str] = {}
    pairs = ((seen.setdefault(_folded(name), name), name) for name in names)
    return [(first, name) for first, name in pairs if first != name]


def deep_classes(source: Source) -> list[str]:
    """The classes whose folder holds only folders."""
    flat = set()
    for file in source.files:
        *above, _ = map(printable, file.path.split("/"))
        if above.index(source.class_names[file.label], 0 if file.split is None else 1) == len(above) - 1:
            flat.add(file.label)
    return [name for label, name in enumerate(source.class_names) if label not in flat]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
