"""A build survives a power cut at any moment: the same command finishes it, and a finished one is on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.build.build import build_dataset
from pipeline.build.journal import FOLDER
from pipeline.build.options import BuildOptions
from pipeline.dataset.store import Dataset
from pipeline.dataset.verify import verify_dataset
from pipeline.errors import OutputExistsError
from tests.common.power import PowerRecorder, Tree, restore
from tests.pipeline.conftest import SIZE

Images = Callable[..., Path]

OPTIONS = BuildOptions(size=SIZE, workers=1)
POINTS = 40  # of the cuts that are tried, spread over the whole build


def record(root: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, options: BuildOptions = OPTIONS) -> PowerRecorder:
    """Build `disk`/results/images.zarr, with the state of `disk` after each system call."""
    disk.mkdir(exist_ok=True)
    recorder = PowerRecorder(disk)
    with recorder.recording(monkeypatch):
        build_dataset(root, disk / "results" / "images.zarr", options)
    return recorder


def check_cut(root: Path, disk: Path, state: Tree, content: str, options: BuildOptions = OPTIONS) -> None:
    """Run the build again in this state of the disk; the dataset must be the one of an uninterrupted build."""
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir()
    restore(state, disk)
    dest = disk / "results" / "images.zarr"
    report = build_dataset(root, dest, options)
    assert report.content_hash == content
    assert verify_dataset(dest).ok
    left = {path.name for path in dest.rglob("*")}
    assert not any(name.endswith((".tmp", ".partial")) for name in left) and FOLDER not in left, left


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the machine that runs the tests is not in question."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("kind", [0, 1], ids=["only what was synced", "all names"])
def test_build_finishes_after_a_power_cut(
    image_folder: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    root = image_folder(cats=6, dogs=5)
    recorder = record(root, tmp_path / "disk", monkeypatch)
    content = Dataset.open(tmp_path / "disk" / "results" / "images.zarr").content_hash
    assert len(recorder.states) >= POINTS
    for point in range(0, len(recorder.states), len(recorder.states) // POINTS):
        try:
            check_cut(root, tmp_path / "cut", recorder.states[point][kind], content)
        except Exception as error:
            raise AssertionError(f"cut after call {point}, {recorder.calls[point]}: {error}") from error


def test_finished_build_is_on_the_disk(image_folder: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug may be pulled as soon as the last line of a build is printed."""
    root = image_folder(cats=6, dogs=5)
    recorder = record(root, tmp_path / "disk", monkeypatch)
    (tmp_path / "cut").mkdir()
    restore(recorder.states[-1][0], tmp_path / "cut")
    found = Dataset.open(tmp_path / "cut" / "results" / "images.zarr")
    assert found.content_hash == Dataset.open(tmp_path / "disk" / "results" / "images.zarr").content_hash
    assert verify_dataset(found.path).ok


def test_replaced_dataset_is_the_old_or_the_new_one(
    image_folder: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut in a build with --overwrite: a rerun finishes it, and no row of the old dataset is left."""
    root = image_folder(cats=6, dogs=5)
    other = BuildOptions(size=SIZE, workers=1, seed=1, overwrite=True)
    record(root, tmp_path / "disk", monkeypatch)
    recorder = record(root, tmp_path / "disk", monkeypatch, other)
    content = Dataset.open(tmp_path / "disk" / "results" / "images.zarr").content_hash
    for point in range(0, len(recorder.states), max(1, len(recorder.states) // 12)):
        check_cut(root, tmp_path / "cut", recorder.states[point][0], content, other)


def test_half_made_folder_of_an_older_version_is_finished(
    image_folder: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.1 did not sync zarr's files: a power cut left them empty, or without their names."""
    root = image_folder(cats=6, dogs=5)
    recorder = record(root, tmp_path / "disk", monkeypatch)
    content = Dataset.open(tmp_path / "disk" / "results" / "images.zarr").content_hash
    half = next(tree for tree, _ in recorder.states if "build.json" in _dataset(tree).get(FOLDER, {}))
    for name in ("zarr.json", "train/zarr.json", "train/images/zarr.json", "val/images/zarr.json"):
        for damage in (None, b"", b"\0" * 4096):
            damaged = _changed(half, ["results", "images.zarr", *name.split("/")], damage)
            check_cut(root, tmp_path / "cut", damaged, content)


@pytest.mark.parametrize("name", ["train/cats/1.jpg", "train/images/1.jpg", "notes.txt", "val/labels", ".build/a/b"])
def test_folder_of_something_else_is_never_half_made(image_folder: Images, tmp_path: Path, name: str) -> None:
    root, dest = image_folder(cats=3, dogs=3), tmp_path / "mine"
    (dest / "train" / "images").mkdir(parents=True)
    (dest / name).parent.mkdir(parents=True, exist_ok=True)
    (dest / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="a folder of something else"):
            build_dataset(root, dest, BuildOptions(size=SIZE, overwrite=overwrite))
    assert (dest / name).read_text() == "mine"


def _dataset(tree: Tree) -> Tree:
    found: Tree = tree.get("results", {}).get("images.zarr", {})
    return found


def _changed(tree: Tree, path: list[str], content: bytes | None) -> Tree:
    """The tree with another content of one file, or without it."""
    first, *rest = path
    changed = {**tree, first: _changed(tree[first], rest, content) if rest else content}
    return {name: value for name, value in changed.items() if value is not None}
