"""Validate, lock and prepare the folder that a dataset is built in."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from logpose.common.errors import escaped
from logpose.common.files import NotAFileError, can_be_read, read_regular, remove_folder, sync_folder
from logpose.common.records import read_json
from pipeline.build.journal import FOLDER, Journal
from pipeline.build.reports import read_failures
from pipeline.dataset.schema import DUPLICATES_FILE, FAILURES_FILE, SHEET_FILE, SPLITS, build_hash
from pipeline.dataset.store import open_split, read_attributes
from pipeline.dataset.writer import unseal
from pipeline.errors import DatasetError, OptionError, OutputExistsError
from pipeline.faults import read_stored
from pipeline.scan.source_files import Source, describe_changes

LOCK_FILE = ".lock"

# Paths in the folder of a build: its files, some with the ending of a temporary one, and its folders.
_ROOT_FILES = "|".join(re.escape(name) for name in ("zarr.json", FAILURES_FILE, DUPLICATES_FILE, SHEET_FILE))
_SPLIT = f"({'|'.join(SPLITS)})"
_OUR_FILES = re.compile(
    rf"{re.escape(LOCK_FILE)}|{re.escape(FOLDER)}/[^/]+|\.?({_ROOT_FILES})(\.tmp|\.[0-9a-f]+\.partial)?"
    rf"|{_SPLIT}/((images|labels|paths)/)?(\.?zarr\.json|c(/\.?[0-9]+)+)(\.tmp|\.[0-9a-f]+\.partial)?"
)
_OUR_FOLDERS = re.compile(rf"{re.escape(FOLDER)}|{_SPLIT}(/(images|labels|paths)(/c(/[0-9]+)*)?)?")


class ExistingBuild(Enum):
    """Whether the destination holds the same build already, unfinished or finished."""

    NONE = "none"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def check_destination(root: Path, dest: Path) -> None:
    """Check that a dataset may be built at `dest`.

    Raises OptionError if it is inside `root`, OutputExistsError if it exists and is not a dataset.
    """
    if dest.resolve().is_relative_to(root.resolve()):
        raise OptionError(
            f"expected a dataset outside the images, found {dest} inside {root}: the next build would list its files"
            " as images; choose another path"
        )
    if not os.path.lexists(dest):
        return
    if not dest.is_dir():
        raise OutputExistsError(f"expected a new path for the dataset, found a file at {dest}: choose another")
    if not _is_half_made(dest) and not _is_dataset(dest):
        raise OutputExistsError(
            f"expected a new path for the dataset, found a folder of something else at {dest}: choose another"
            " (only datasets are ever overwritten)"
        )


def prepare_destination(dest: Path, identity: dict[str, Any], source: Source, overwrite: bool) -> ExistingBuild:
    """Find the build with this identity at a checked and locked path, and delete any other.

    Raises OutputExistsError if that would delete a finished dataset, or an unfinished one of another identity, and
    `overwrite` is not set; and if a finished one lacks files that could not be opened then, and can be now.
    """
    if _is_half_made(dest):
        _remove_dataset(dest)
        return ExistingBuild.NONE
    try:
        attributes = read_attributes(dest)
        sealed, same = attributes.sealed, attributes.build_hash == build_hash(identity)
    except DatasetError:
        sealed, same = True, False  # damaged, or of another version: it may be valuable
    journal = Journal(dest)
    previous = journal.identity()
    if not sealed and (previous == identity or (previous == {} and same)):  # {}: damaged
        with suppress(DatasetError, OSError, ValueError):
            for split in SPLITS:
                open_split(dest, split, attributes)
                read_stored(partial(read_json, dest / split / "zarr.json"), dest / split)
            return ExistingBuild.UNFINISHED
        overwrite = True  # a power cut damaged the metadata, which version 0.1 did not sync: start again
    if not overwrite and sealed and same:
        journal.end()  # in case the build was killed between sealing and deleting it
        _check_unreadable(dest, source)
        return ExistingBuild.FINISHED
    if not overwrite and sealed:
        raise OutputExistsError(
            f"expected a new path for the dataset, found a finished one of other images or options at {dest}:"
            " choose another, or replace it with --overwrite"
        )
    if not overwrite and previous is not None:
        differences = _differing_options(previous, identity)
        if not previous or not (differences or previous.get("pictures")):
            differences = ["a damaged journal"]
        elif previous.get("pictures") != identity["pictures"]:
            differences.insert(0, f"other images: {describe_changes(journal.files(), source.lines())}")
        raise OutputExistsError(
            f"expected to resume the build at {dest}, found {' and '.join(differences)}: use the images and options"
            " that it was started with, or start again with --overwrite"
        )
    _remove_dataset(dest)
    return ExistingBuild.NONE


def _check_unreadable(dest: Path, source: Source) -> None:
    """Look again at the files that a finished dataset left out since they could not be opened."""
    try:
        unreadable = {failure.path for failure in read_failures(dest) if failure.kind == "unreadable"}
    except DatasetError:  # a damaged table is no reason to refuse: `verify` reports it
        return
    again = [file.path for file in source.files if unreadable and escaped(file.path) in unreadable]
    found = [path for path in again if can_be_read(f"{source.root}/{path}")]
    if found:
        what = f"{len(found):,} file{'s' if len(found) > 1 else ''} that could not be read then, and can be now"
        raise OutputExistsError(
            f"expected to find {dest} complete, found that it lacks {what} (first {found[0]}): build it again with"
            " --overwrite, or choose another path"
        )


def _is_dataset(dest: Path) -> bool:
    """Whether logpose built this, even if it is damaged or of another version."""
    with suppress(DatasetError):
        read_attributes(dest)
        return True
    metadata = dest / "zarr.json"
    with suppress(FileNotFoundError, NotAFileError):
        return b'"logpose"' in read_stored(partial(read_regular, metadata), metadata) and (dest / SPLITS[0]).is_dir()
    return False


def _is_half_made(dest: Path) -> bool:
    """Whether this is an empty folder, or what a crash left of a build: without metadata, and with our files only."""
    metadata = dest / "zarr.json"
    try:
        # A power cut leaves it empty, or full of zeros.
        if read_stored(partial(read_regular, metadata), metadata).strip(b"\0"):
            return False
    except NotAFileError:
        return False
    except FileNotFoundError:
        pass
    for folder, folders, files in os.walk(dest):
        inside = Path(folder).relative_to(dest)
        if not all(_OUR_FILES.fullmatch((inside / name).as_posix()) for name in files):
            return False
        for name in folders:
            if not _OUR_FOLDERS.fullmatch((inside / name).as_posix()) or Path(folder, name).is_symlink():
                return False
    return True


def _differing_options(previous: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The options in which two identities differ, for a message."""
    options = (key for key in {**now, **previous} if key != "pictures" and previous.get(key) != now.get(key))
    return [f"{key} {now.get(key)} instead of {previous.get(key)}" for key in options]


def _remove_dataset(dest: Path) -> None:
    """Delete the files of a dataset, and no others; if this is interrupted, the rest is not a sealed dataset."""
    with suppress(DatasetError):
        if read_attributes(dest).sealed:
            unseal(dest)
    Journal(dest).delete()  # first, and durably: without the rest, its entries would be wrong
    for name in SPLITS:
        remove_folder(dest / name)
    for name in (FAILURES_FILE, DUPLICATES_FILE, SHEET_FILE, f".{SHEET_FILE}.tmp"):
        (dest / name).unlink(missing_ok=True)
    (dest / "zarr.json").unlink(missing_ok=True)
    sync_folder(dest)
