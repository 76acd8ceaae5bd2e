"""Where a dataset is to go: what is there already, and whether it may go."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import DatasetError, OptionError, OutputExistsError
from pipeline.journal import FOLDER, Journal
from pipeline.schema import FAILURES_FILE, PARTS
from pipeline.store import read_attributes, unseal


def check_place(root: Path, dest: Path) -> None:
    """Refuse a place that is inside the pictures, or that is taken by something that is not ours."""
    if dest.resolve().is_relative_to(root.resolve()):
        raise OptionError(
            f"expected a dataset outside the pictures, found {dest} inside {root}: it would be listed as"
            " pictures the next time; choose another place"
        )
    if not os.path.lexists(dest):
        return
    if not dest.is_dir():
        raise OutputExistsError(f"expected a free place for the dataset, found a file at {dest}: choose another")
    if any(dest.iterdir()) and not _is_ours(dest):
        raise OutputExistsError(
            f"expected a free place for the dataset, found a folder of something else at {dest}: choose another"
            " (what is not a dataset is never overwritten)"
        )


def make_way(dest: Path, identity: dict[str, Any], overwrite: bool) -> bool:
    """Leave at a checked place either the unfinished build with this identity, or nothing of ours.

    Returns whether there is one to go on with. Raises OutputExistsError where that would lose a
    finished dataset, or an unfinished one of another identity, and overwrite is not set.
    """
    if not os.path.lexists(dest / "zarr.json"):
        return False
    try:
        sealed = read_attributes(dest).sealed
    except DatasetError:
        sealed = True  # damaged, or of another version: somebody's finished work, as far as we know
    former = Journal(dest).identity()
    if not sealed and former == identity:
        return True
    if not overwrite and sealed:
        raise OutputExistsError(
            f"expected a free place for the dataset, found a finished one at {dest}: choose another, or"
            " replace it with --overwrite"
        )
    if not overwrite and former is not None:
        raise OutputExistsError(
            f"expected to go on with the build begun at {dest}, found {_difference(former, identity)}: give"
            " what it was begun with, or start over with --overwrite"
        )
    _remove(dest)
    return False


def _is_ours(dest: Path) -> bool:
    """Whether this is a dataset of logpose, though perhaps damaged or of another version."""
    with suppress(DatasetError):
        read_attributes(dest)
        return True
    with suppress(OSError):
        return b'"logpose"' in (dest / "zarr.json").read_bytes() and (dest / PARTS[0]).is_dir()
    return False


def _difference(former: dict[str, Any], now: dict[str, Any]) -> str:
    """Where two identities differ, for a person."""
    said = [
        "other pictures" if key == "pictures" else f"{key} {now[key]} instead of {former.get(key)}"
        for key in now
        if former.get(key) != now[key]
    ]
    return " and ".join(said)


def _remove(dest: Path) -> None:
    """Delete what is ours in the folder; if this is cut short, the rest cannot be taken for whole."""
    with suppress(DatasetError):
        if read_attributes(dest).sealed:
            unseal(dest)
    for name in (*PARTS, FOLDER):
        shutil.rmtree(dest / name, ignore_errors=True)
    (dest / FAILURES_FILE).unlink(missing_ok=True)
    (dest / "zarr.json").unlink()
