"""Where a dataset is to go: what is there already, whether it may go, and that nobody else is at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.build.journal import FOLDER, Journal
from pipeline.build.source_files import Source, what_changed
from pipeline.dataset.schema import DUPLICATES_FILE, FAILURES_FILE, SHEET_FILE, SPLITS, build_hash
from pipeline.dataset.store import read_attributes, unseal
from pipeline.errors import BusyError, DatasetError, OptionError, OutputExistsError

LOCK_FILE = ".lock"


class DestinationState(Enum):
    """What there is at the place: nothing of ours any more, this build begun, or this build finished."""

    NOTHING = "nothing"
    BEGUN = "begun"
    FINISHED = "finished"


def check_place(root: Path, dest: Path) -> None:
    """Refuse a place that is inside the images, or that is taken by something that is not ours."""
    if dest.resolve().is_relative_to(root.resolve()):
        raise OptionError(
            f"expected a dataset outside the images, found {dest} inside {root}: it would be listed as"
            " images the next time; choose another place"
        )
    if not os.path.lexists(dest):
        return
    if not dest.is_dir():
        raise OutputExistsError(f"expected a free place for the dataset, found a file at {dest}: choose another")
    if {entry.name for entry in dest.iterdir()} - {LOCK_FILE} and not _is_ours(dest):
        raise OutputExistsError(
            f"expected a free place for the dataset, found a folder of something else at {dest}: choose another"
            " (what is not a dataset is never overwritten)"
        )


@contextmanager
def lock_destination(dest: Path) -> Iterator[None]:
    """Be the only build of this dataset while the block runs. Makes the folder. Raises BusyError."""
    dest.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(dest / LOCK_FILE, f"build of {dest}"):
        yield


@contextmanager
def exclusive_lock(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs; the system lets go of it if we are killed.

    what  'build of …': for the BusyError that is raised where another process holds it
    """
    lock = FileLock(lock_file, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"expected to be the only {what}, found another one at work on it: wait until it has"
            " finished, or choose another place"
        ) from None
    try:
        yield
    finally:
        # While we still hold it. Who waits for nothing, as all of us do, cannot be left with a file that is gone.
        with suppress(OSError):  # Windows deletes no file that is open: there it stays
            lock_file.unlink()
        lock.release()


def prepare_destination(dest: Path, identity: dict[str, Any], source: Source, overwrite: bool) -> DestinationState:
    """Leave at a checked place the build with this identity, begun or finished, or nothing of ours.

    Raises OutputExistsError where that would lose a finished dataset, or an unfinished one of another
    identity, and overwrite is not set.
    """
    if not os.path.lexists(dest / "zarr.json"):
        return DestinationState.NOTHING
    try:
        attributes = read_attributes(dest)
        sealed, same = attributes.sealed, attributes.build_hash == build_hash(identity)
    except DatasetError:
        sealed, same = True, False  # damaged, or of another version: somebody's finished work, as far as we know
    journal = Journal(dest)
    former = journal.identity()
    if not sealed and former == identity:
        return DestinationState.BEGUN
    if not overwrite and sealed and same:
        journal.end()  # it may have been killed between sealing and this
        return DestinationState.FINISHED
    if not overwrite and sealed:
        raise OutputExistsError(
            f"expected a free place for the dataset, found a finished one of other images or options at {dest}:"
            " choose another, or replace it with --overwrite"
        )
    if not overwrite and former is not None:
        different = _difference(former, identity)
        if former["pictures"] != identity["pictures"]:
            different.insert(0, f"other images: {what_changed(journal.files(), source.lines())}")
        raise OutputExistsError(
            f"expected to go on with the build begun at {dest}, found {' and '.join(different)}: give what it"
            " was begun with, or start over with --overwrite"
        )
    _remove(dest)
    return DestinationState.NOTHING


def _is_ours(dest: Path) -> bool:
    """Whether this is a dataset of logpose, though perhaps damaged or of another version."""
    with suppress(DatasetError):
        read_attributes(dest)
        return True
    with suppress(OSError):
        return b'"logpose"' in (dest / "zarr.json").read_bytes() and (dest / SPLITS[0]).is_dir()
    return False


def _difference(former: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The options in which two identities differ, for a person."""
    options = (key for key in now if key != "pictures" and former.get(key) != now[key])
    return [f"{key} {now[key]} instead of {former.get(key)}" for key in options]


def _remove(dest: Path) -> None:
    """Delete what is ours in the folder; if this is cut short, the rest cannot be taken for whole."""
    with suppress(DatasetError):
        if read_attributes(dest).sealed:
            unseal(dest)
    for name in (*SPLITS, FOLDER):
        shutil.rmtree(dest / name, ignore_errors=True)
    for name in (FAILURES_FILE, DUPLICATES_FILE, SHEET_FILE, f".{SHEET_FILE}.tmp"):
        (dest / name).unlink(missing_ok=True)
    (dest / "zarr.json").unlink()
