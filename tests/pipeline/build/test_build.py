"""Builds: the rows of the dataset, failures, destinations and options."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.build import build as build_module
from pipeline.build import shard_task
from pipeline.build.build import BuildReport, build_dataset
from pipeline.build.destination import ExistingBuild
from pipeline.build.journal import FOLDER
from pipeline.build.options import BuildOptions
from pipeline.build.reports import read_failures
from pipeline.dataset.store import Dataset
from pipeline.errors import (
    DatasetError,
    ListingError,
    OptionError,
    OutputExistsError,
    PipelineError,
    TooManyFailures,
)
from tests.pipeline.conftest import SIZE, check_rows

Images = Callable[..., Path]
Build = Callable[..., BuildReport]


def failures_in(dest: Path) -> list[list[str]]:
    with (dest / "failures.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.usefixtures("small_chunks")
def test_every_image_is_in_the_dataset_once(image_folder: Images, build: Build) -> None:
    report = build(image_folder(b=25, a=12, c=2), val=0.25)
    dataset = Dataset.open(report.path)
    assert dataset.class_names == report.class_names == ("a", "b", "c")
    assert (dataset.train.rows, dataset.val.rows) == (29, 10) == (report.rows["train"], report.rows["val"])
    assert dataset.train.shards == 4
    for split in (dataset.train, dataset.val):
        check_rows(split, dataset.class_names)
    paths = dataset.train.paths + dataset.val.paths
    assert len(set(paths)) == 39
    assert dataset.train.paths != sorted(dataset.train.paths), "rows are stored in random order"
    pixels = dataset.train.read(0, 29).reshape(-1, 3).astype(float)
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=0), rtol=1e-9)
    assert failures_in(report.path) == [["path", "kind", "reason"]]
    assert not (report.path / FOLDER).exists()


@pytest.mark.usefixtures("small_chunks")
def test_content_depends_on_images_and_options_only(image_folder: Images, build: Build, tmp_path: Path) -> None:
    root = image_folder(a=20, b=20)
    hashes = [
        build(root, tmp_path / f"{number}.zarr", **options).content_hash
        for number, options in enumerate(
            [{"workers": 1}, {"workers": 4}, {"seed": 1}, {"val": 0.5}, {"fit": "crop"}, {"codec": "zstd"}]
        )
    ]
    assert hashes[0] == hashes[1] == hashes[5]
    assert len(set(hashes)) == 4
    np.testing.assert_array_equal(
        Dataset.open(tmp_path / "5.zarr").train.read(3, 30), Dataset.open(tmp_path / "0.zarr").train.read(3, 30)
    )


def test_splits_of_the_folder_are_used(image_folder: Images, build: Build, tmp_path: Path) -> None:
    image_folder("set/train", a=4, b=3)
    image_folder("set/test", a=2, b=1)
    dataset = Dataset.open(build(tmp_path / "set", val=0.5).path)
    assert {path.split("/")[0] for path in dataset.train.paths} == {"train"}
    assert {path.split("/")[0] for path in dataset.val.paths} == {"test"}


def test_val_0_gives_an_empty_validation_split(image_folder: Images, build: Build) -> None:
    dataset = Dataset.open(build(image_folder(a=3, b=3), val=0).path)
    assert dataset.val.rows == 0
    assert dataset.val.read(0, 0).shape == (0, *SIZE, 3)
    assert dataset.val.labels.tolist() == dataset.val.paths == []


# Failures


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken=st.sets(st.integers(0, 39), max_size=34))
@pytest.mark.usefixtures("small_chunks")
def test_each_file_is_a_row_or_a_failure(broken: set[int], image_folder: Images, build: Build, tmp_path: Path) -> None:
    root = image_folder(f"of {len(broken)}", a=20, b=20)
    files = sorted(root.rglob("*.png"))
    for number in broken - {0, 20}:
        files[number].write_bytes(b"" if number % 2 else b"no image")
    report = build(root, val=0.2, overwrite=True)
    dataset = Dataset.open(report.path)
    for split in (dataset.train, dataset.val):
        check_rows(split, dataset.class_names)
    expected = {files[number].relative_to(root).as_posix() for number in broken - {0, 20}}
    assert {failure.path for failure in report.failures} == expected
    assert {row[0] for row in failures_in(report.path)[1:]} == expected
    assert (
        set(dataset.train.paths) | set(dataset.val.paths)
        == {file.relative_to(root).as_posix() for file in files} - expected
    )
    assert sum(report.rows.values()) == 40 - len(expected)


def test_failures_have_printable_path_kind_and_reason(image_folder: Images, build: Build) -> None:
    root = image_folder(a=3, b=3)
    (root / "a" / 'comma, "quote"\nline.png').touch()
    (root / "b" / "not utf-8 \udcff.png").write_bytes(b"x")
    report = build(root)
    assert failures_in(report.path)[1:] == [
        ["a/comma, \"quote\"\\x0aline.png", "empty", "the file has no bytes"],
        ["b/not utf-8 \\udcff.png", "not-an-image",
         "no known format, or a damaged header (the file begins with b'x')"],
    ]  # fmt: skip


def test_names_outside_ascii_are_stored(image_folder: Images, build: Build) -> None:
    root = image_folder(a=3, ルフィ=3)
    (root / "a" / "0000.png").rename(root / "a" / "é\udcff.png")
    dataset = Dataset.open(build(root, val=0).path)
    assert dataset.class_names == ("a", "ルフィ")
    assert "a/é\\udcff.png" in dataset.train.paths
    assert "ルフィ/0003.png" in dataset.train.paths


def test_file_changed_or_deleted_during_the_build_is_a_failure(
    image_folder: Images, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(a=4, b=4)
    list_images = build_module.list_images

    def change_files(root: Path) -> object:
        source = list_images(root)
        (root / "a" / "0001.png").unlink()
        (root / "b" / "0005.png").write_bytes(b"other")
        return source

    monkeypatch.setattr(build_module, "list_images", change_files)
    report = build(root)
    assert [(failure.path, failure.kind) for failure in report.failures] == [
        ("a/0001.png", "unreadable"), ("b/0005.png", "changed")
    ]  # fmt: skip


@pytest.mark.parametrize(("limit", "stops"), [(2, False), (1, True), (0.2, False), (0.1, True), (None, False)])
def test_too_many_failures_stop_the_build(image_folder: Images, build: Build, limit: float | None, stops: bool) -> None:
    root = image_folder(a=5, b=5)
    for name in ("a/0000.png", "b/0005.png"):
        (root / name).write_bytes(b"")
    if not stops:
        assert len(build(root, max_failures=limit).failures) == 2
        return
    with pytest.raises(TooManyFailures, match=r"unreadable files, found 2: a/0000.png .empty., b/0005.png") as caught:
        build(root, max_failures=limit)
    assert caught.value.exit_code == 1
    dest = root.parent / "images.zarr"
    assert len(failures_in(dest)) == 3
    with pytest.raises(DatasetError, match="run the same 'logpose build' again"):
        Dataset.open(dest)
    report = build(root, max_failures=2)
    assert report.existing is ExistingBuild.UNFINISHED
    assert len(report.failures) == 2


def test_failures_are_read_back(image_folder: Images, build: Build) -> None:
    root = image_folder(a=3, b=3)
    (root / "a" / 'comma, "quote"\nline.png').touch()
    (root / "b" / "0003.png").write_bytes(b"x")
    report = build(root)
    assert read_failures(report.path) == list(report.failures)
    (report.path / "failures.csv").write_bytes(b"path,kind,reason\n")
    with pytest.raises(DatasetError, match=r"expected a table of path, kind, reason, found ValueError another file"):
        read_failures(report.path)
    node = json.loads((report.path / "zarr.json").read_bytes())
    for name in ("crc32", "reports"):  # as in a dataset of 0.1.0
        del node["attributes"][name]
    (report.path / "zarr.json").write_text(json.dumps(node))
    for content, found in ((b"path,reason\na,b\n", "KeyError 'kind'"), (b"path,kind\xff\n", "UnicodeDecodeError")):
        (report.path / "failures.csv").write_bytes(content)
        with pytest.raises(DatasetError, match=f"expected a table of path, kind, reason, found {found}"):
            read_failures(report.path)
    (report.path / "failures.csv").unlink()
    with pytest.raises(DatasetError, match=r"found no such file or directory at .*failures\.csv: restore it"):
        read_failures(report.path)


def test_class_without_a_readable_image_is_an_error(image_folder: Images, build: Build) -> None:
    root = image_folder(a=3, b=2)
    for file in (root / "b").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(ListingError, match=r"found none in b of .*: see .*failures.csv") as caught:
        build(root)
    assert caught.value.exit_code == 2


# Destinations


def test_finished_dataset_is_not_replaced_without_overwrite(image_folder: Images, build: Build) -> None:
    root = image_folder(a=3, b=3)
    first = build(root)
    with pytest.raises(OutputExistsError, match=r"found a finished one of .*: choose another, or replace it with"):
        build(root, seed=1)
    assert Dataset.open(first.path).content_hash == first.content_hash
    assert build(root, seed=1, overwrite=True).content_hash != first.content_hash


def test_other_files_are_never_overwritten(image_folder: Images, build: Build, tmp_path: Path) -> None:
    root = image_folder(a=3, b=3)
    thesis = tmp_path / "thesis" / "chapter.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    for dest, found in ((thesis.parent, "a folder of something else"), (thesis, "a file")):
        with pytest.raises(OutputExistsError, match=f"found {found} at"):
            build(root, dest, overwrite=True)
    assert thesis.read_text() == "years of work"
    empty = tmp_path / "empty"
    empty.mkdir()
    build(root, empty)


def test_dataset_inside_the_images_is_refused(image_folder: Images, build: Build) -> None:
    root = image_folder(a=3, b=3)
    with pytest.raises(OptionError, match=r"found .* inside .*: the next build would list its files"):
        build(root, root / "data.zarr")


@pytest.mark.parametrize("killed_after", ["create", "nothing"])
def test_dataset_without_a_journal_is_built_from_the_start(
    image_folder: Images, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: str
) -> None:
    root, dest = image_folder(a=3, b=3), tmp_path / "images.zarr"
    if killed_after == "create":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(build_module.Journal, "begin", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            build(root)
    else:
        dest.mkdir()
    assert build(root).existing is ExistingBuild.NONE


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"size": (0, 4)}, "at least 1x1, found 0x4"), ({"fit": "fill"}, "pad, crop, squash, found 'fill'"),
     ({"val": 1.0}, r"in \[0, 1\), found 1.0"), ({"workers": 0}, "1 to 1024 workers, found 0"),
     ({"max_failures": -1}, "0 or more, found -1"), ({"codec": "lzma"}, "none, lz4, zstd, found 'lzma'")],
)  # fmt: skip
def test_options_out_of_range_are_refused_before_anything_is_deleted(
    image_folder: Images, build: Build, options: dict[str, object], expected: str
) -> None:
    root = image_folder(a=3, b=3)
    before = build(root).content_hash
    with pytest.raises(OptionError, match=expected):
        build(root, overwrite=True, **options)
    assert Dataset.open(root.parent / "images.zarr").content_hash == before


def test_missing_distributed_is_an_error(image_folder: Images, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(OptionError, match=r"found it is not installed: run .pip install"):
        build(image_folder(a=3, b=3), scheduler="tcp://127.0.0.1:1")


def test_progress_is_reported_while_files_are_decoded(
    image_folder: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = shard_task.decode_image
    monkeypatch.setattr(shard_task, "decode_image", lambda *args: time.sleep(0.02) or decode(*args))
    calls: list[tuple[int, int, str, int]] = []
    root = image_folder(a=20, b=20)
    (root / "a" / "0001.png").write_bytes(b"")
    build_dataset(root, tmp_path / "x.zarr", BuildOptions(SIZE, val=0, workers=1), lambda *call: calls.append(call))
    assert len({done for done, *_ in calls}) >= 4, "expected progress within the one shard"
    reading = [call for call in calls if call[2] == "images"]
    assert reading == sorted(reading)
    assert calls[-1] == (40, 40, "images", 1)


def test_every_error_has_an_exit_code() -> None:
    kinds = [PipelineError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.__name__ for kind in kinds if kind.exit_code == 1} == {
        "BuildError", "TooManyFailures", "ReadError", "DatasetChangedError"
    }  # fmt: skip
