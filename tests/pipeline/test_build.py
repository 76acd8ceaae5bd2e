"""Builds: what ends in the dataset, what fails and how, and that a killed build goes on."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import build as build_module
from pipeline import schedule, shards
from pipeline.build import BuildOptions, BuildReport, build_dataset
from pipeline.errors import (
    BuildError,
    BusyError,
    DatasetError,
    ListingError,
    OptionError,
    OutputExistsError,
    PipelineError,
    TooManyFailures,
)
from pipeline.journal import FOLDER, Journal
from pipeline.place import LOCK_FILE, Found, alone_at
from pipeline.store import Dataset, Part, shard_file
from tests.pipeline.conftest import SIZE, colour_of
from tests.pipeline.kill_builds import Builder, kill_builds

Pictures = Callable[..., Path]
Build = Callable[..., BuildReport]


def check_rows(part: Part, class_names: tuple[str, ...]) -> None:
    """Each row shows the colour of the file it says it came from, and has the class of its folder."""
    images = part.read(0, part.rows)
    for image, label, path in zip(images, part.labels, part.paths, strict=True):
        folder, name = path.split("/")[-2:]
        assert class_names[label] == folder
        assert (image == colour_of(name.split(".")[0])).all(), f"{path} shows another picture"


def failures_in(dest: Path) -> list[list[str]]:
    with (dest / "failures.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.usefixtures("small_chunks")
def test_every_picture_is_in_the_dataset_once(pictures: Pictures, build: Build) -> None:
    report = build(pictures(b=25, a=12, c=2), val=0.25)
    dataset = Dataset.open(report.path)
    assert dataset.class_names == report.class_names == ("a", "b", "c")
    assert (dataset.train.rows, dataset.val.rows) == (29, 10) == (report.rows["train"], report.rows["val"])
    assert dataset.train.shards == 4
    for part in (dataset.train, dataset.val):
        check_rows(part, dataset.class_names)
    paths = dataset.train.paths + dataset.val.paths
    assert len(set(paths)) == 39
    assert dataset.train.paths != sorted(dataset.train.paths), "rows lie in random order"
    pixels = dataset.train.read(0, 29).reshape(-1, 3).astype(float)
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=0), rtol=1e-9)
    assert failures_in(report.path) == [["path", "kind", "reason"]]
    assert not (report.path / FOLDER).exists()


@pytest.mark.usefixtures("small_chunks")
def test_content_depends_on_pictures_and_options_alone(pictures: Pictures, build: Build, tmp_path: Path) -> None:
    root = pictures(a=20, b=20)
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


def test_parts_of_the_folder_are_used_as_they_are(pictures: Pictures, build: Build, tmp_path: Path) -> None:
    pictures("set/train", a=4, b=3)
    pictures("set/test", a=2, b=1)
    dataset = Dataset.open(build(tmp_path / "set", val=0.5).path)
    assert {path.split("/")[0] for path in dataset.train.paths} == {"train"}
    assert {path.split("/")[0] for path in dataset.val.paths} == {"test"}


def test_no_validation_part(pictures: Pictures, build: Build) -> None:
    dataset = Dataset.open(build(pictures(a=3, b=3), val=0).path)
    assert dataset.val.rows == 0
    assert dataset.val.read(0, 0).shape == (0, *SIZE, 3)
    assert dataset.val.labels.tolist() == dataset.val.paths == []


# Failures


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken=st.sets(st.integers(0, 39), max_size=34))
@pytest.mark.usefixtures("small_chunks")
def test_each_file_is_a_row_or_a_failure(broken: set[int], pictures: Pictures, build: Build, tmp_path: Path) -> None:
    root = pictures(f"of {len(broken)}", a=20, b=20)
    files = sorted(root.rglob("*.png"))
    for number in broken - {0, 20}:
        files[number].write_bytes(b"" if number % 2 else b"no picture")
    report = build(root, val=0.2, overwrite=True)
    dataset = Dataset.open(report.path)
    for part in (dataset.train, dataset.val):
        check_rows(part, dataset.class_names)
    expected = {files[number].relative_to(root).as_posix() for number in broken - {0, 20}}
    assert {failure.path for failure in report.failures} == expected
    assert {row[0] for row in failures_in(report.path)[1:]} == expected
    assert (
        set(dataset.train.paths) | set(dataset.val.paths)
        == {file.relative_to(root).as_posix() for file in files} - expected
    )
    assert sum(report.rows.values()) == 40 - len(expected)


def test_failures_have_kind_and_reason_and_odd_names(pictures: Pictures, build: Build) -> None:
    root = pictures(a=3, b=3)
    (root / "a" / 'comma, "quote"\nline.png').touch()
    (root / "b" / "no utf-8 \udcff.png").write_bytes(b"x")
    report = build(root)
    assert failures_in(report.path)[1:] == [
        ["a/comma, \"quote\"\\x0aline.png", "empty", "the file has no bytes"],
        ["b/no utf-8 \\udcff.png", "not-a-picture",
         "no known format, or a damaged header (the file begins with b'x')"],
    ]  # fmt: skip


def test_names_that_are_no_ascii_come_back(pictures: Pictures, build: Build) -> None:
    root = pictures(a=3, ルフィ=3)
    (root / "a" / "0000.png").rename(root / "a" / "é\udcff.png")
    dataset = Dataset.open(build(root, val=0).path)
    assert dataset.class_names == ("a", "ルフィ")
    assert "a/é\\udcff.png" in dataset.train.paths
    assert "ルフィ/0003.png" in dataset.train.paths


def test_a_file_that_changes_or_goes_during_the_build_is_a_failure(
    pictures: Pictures, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pictures(a=4, b=4)
    survey = build_module.survey

    def meddle(*arguments: object) -> object:
        source = survey(*arguments)  # type: ignore[arg-type]
        (root / "a" / "0001.png").unlink()
        (root / "b" / "0005.png").write_bytes(b"other")
        return source

    monkeypatch.setattr(build_module, "survey", meddle)
    report = build(root)
    assert [(failure.path, failure.kind) for failure in report.failures] == [
        ("a/0001.png", "unreadable"), ("b/0005.png", "changed")
    ]  # fmt: skip


@pytest.mark.parametrize(("limit", "stops"), [(2, False), (1, True), (0.2, False), (0.1, True), (None, False)])
def test_too_many_failures(pictures: Pictures, build: Build, limit: float | None, stops: bool) -> None:
    root = pictures(a=5, b=5)
    for name in ("a/0000.png", "b/0005.png"):
        (root / name).write_bytes(b"")
    if not stops:
        assert len(build(root, max_failures=limit).failures) == 2
        return
    with pytest.raises(TooManyFailures, match=r"unreadable files, found 2: a/0000.png .empty., b/0005.png") as caught:
        build(root, max_failures=limit)
    assert caught.value.exit_code == 1
    dest = root.parent / "pictures.zarr"
    assert len(failures_in(dest)) == 3
    with pytest.raises(DatasetError, match="run the same 'logpose build' again"):
        Dataset.open(dest)
    report = build(root, max_failures=2)
    assert report.found is Found.BEGUN
    assert len(report.failures) == 2


def test_a_class_with_no_readable_picture(pictures: Pictures, build: Build) -> None:
    root = pictures(a=3, b=2)
    for file in (root / "b").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(ListingError, match=r"found none in b of .*: see .*failures.csv") as caught:
        build(root)
    assert caught.value.exit_code == 2


# Going on


def build_and_stop(root: Path, dest: Path, after: int, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """Build until so many shards are in the journal, then fail as a full disk does."""
    written: list[object] = []
    write = shards.write_shard

    def write_some(*arguments: object) -> None:
        if len(written) == after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*arguments)  # type: ignore[arg-type]
        written.append(arguments)

    with monkeypatch.context() as patch, pytest.raises(BuildError, match="no space left on device") as caught:
        patch.setattr(shards, "write_shard", write_some)
        build_dataset(root, dest, BuildOptions(**({"size": SIZE, "workers": 1} | options)))  # type: ignore[arg-type]
    assert "free some space and run the same build again" in str(caught.value)
    assert caught.value.exit_code == 1


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list that each file is added to when it is decoded."""
    decoded: list[Path] = []
    decode = shards.frame_picture

    def count(path: Path, *rest: object) -> object:
        decoded.append(path)
        return decode(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "frame_picture", count)
    return decoded


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("after", [0, 1, 3, 5, 6, 7])
def test_a_full_disk_then_go_on(
    pictures: Pictures, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    root = pictures(a=20, b=20)
    for number in (3, 19):  # so that there is a second round, which rewrites shards
        (root / "a" / f"{number:04d}.png").write_bytes(b"")
    undisturbed = build(root, tmp_path / "undisturbed.zarr")
    build_and_stop(root, tmp_path / "stopped.zarr", after, monkeypatch)
    report = build(root, tmp_path / "stopped.zarr")
    assert report.found is Found.BEGUN
    assert report.content_hash == undisturbed.content_hash
    assert report.failures == undisturbed.failures
    dataset = Dataset.open(report.path)
    check_rows(dataset.train, dataset.class_names)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("after", [3, 6])
def test_going_on_decodes_only_what_is_missing(
    pictures: Pictures, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    root = pictures(a=20, b=20)
    broken = {root / "a" / "0003.png", root / "a" / "0019.png"}
    for file in broken if after == 6 else ():  # the five shards, and one of the second round
        file.write_bytes(b"")
    build_and_stop(root, tmp_path / "stopped.zarr", after, monkeypatch, val=0.0)
    decoded = count_decoding(monkeypatch)
    build(root, tmp_path / "stopped.zarr", val=0.0)
    assert len(decoded) == 40 - 3 * 8 if after == 3 else len(decoded) <= 2
    assert not broken & set(decoded) or after == 3, "what failed is remembered"


@pytest.mark.usefixtures("small_chunks")
def test_a_second_round_copies_what_is_there(pictures: Pictures, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(a=20, b=20)
    (root / "a" / "0003.png").write_bytes(b"")
    decoded = count_decoding(monkeypatch)
    build(root, val=0.0)
    assert len(decoded) <= 41, "all files once, and the one that fills the hole once more"


SLOW_BUILD = """
import signal, sys, time
from pathlib import Path
from pipeline import schema, shards
from pipeline.build import BuildOptions, build_dataset

schema.CHUNK_BYTES, schema.SHARD_CHUNKS = 4 * 8 * 12 * 3, 2
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests themselves run in the background
decode = shards.frame_picture
shards.frame_picture = lambda *arguments: time.sleep(0.01) or decode(*arguments)
build_dataset(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions((8, 12), workers=2))
"""


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("signalled", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_goes_on(pictures: Pictures, build: Build, tmp_path: Path, signalled: signal.Signals) -> None:
    root, dest = pictures(a=60, b=60), tmp_path / "killed.zarr"
    (root / "a" / "0003.png").write_bytes(b"")
    process = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, root, dest], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(dest.glob(f"{FOLDER}/*-*.json"))) < 3:
        assert process.poll() is None, f"the build ended early: {process.communicate()[1].decode()}"
        assert time.monotonic() < deadline, "no shard within 120 s"
        time.sleep(0.01)
    process.send_signal(signalled)
    process.communicate(timeout=120)  # a hang, not a slow machine
    assert process.returncode != 0
    with pytest.raises(DatasetError, match=r"found one still being built at .*: run the same 'logpose build'"):
        Dataset.open(dest)
    report = build(root, dest)
    assert report.found is Found.BEGUN
    assert report.content_hash == build(root, tmp_path / "undisturbed.zarr").content_hash
    assert not list(dest.rglob("*.partial"))


def test_builds_killed_at_random_moments(pictures: Pictures, tmp_path: Path) -> None:
    """A short version of `python -m tests.pipeline.kill_builds`."""
    root = pictures(a=150, b=150)
    for number in (3, 160, 299):
        (root / ("a" if number < 150 else "b") / f"{number:04d}.png").write_bytes(b"")
    builder = Builder(root, size=12, workers=2, chunk_bytes=4 * 12 * 12 * 3, shard_chunks=2)
    done, _, rows = kill_builds(builder, kills=4, seed=5, folder=tmp_path)
    assert rows == 8
    assert sum(kill.hits for kill in done) == 4


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_full(pictures: Pictures, build: Build, tmp_path: Path) -> None:
    """A real one of 2 MB, of which a file keeps most at first."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"no small disk could be mounted: {mount.stderr.decode()}")
    try:
        root = pictures(a=40, b=40)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1_900_000))
        with pytest.raises(BuildError, match=r"found no space left on device at .*: free some space and run") as caught:
            build(root, disk / "pictures.zarr", size=(32, 32))
        assert caught.value.exit_code == 1
        assert not list(disk.rglob("*.partial"))
        for kept in (1_700_000, 1_500_000, 1_300_000, 0):
            ballast.write_bytes(bytes(kept))
            with suppress(BuildError):
                build(root, disk / "pictures.zarr", size=(32, 32))
        report = build(root, disk / "pictures.zarr", size=(32, 32))
        assert report.content_hash == build(root, tmp_path / "elsewhere.zarr", size=(32, 32)).content_hash
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("change", "expected"),
    [({"val": 0.3}, "found --val 0.3 instead of 0.1"), ({"seed": 5}, "--seed 5 instead of 0"),
     ({"fit": "crop"}, "--fit crop instead of pad"), (None, "other pictures: 1 changed .first a/0001.png.: give")],
)  # fmt: skip
def test_another_source_or_option_does_not_go_on(
    pictures: Pictures, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object] | None, expected: str,
) -> None:  # fmt: skip
    root, dest = pictures(a=20, b=20), tmp_path / "stopped.zarr"
    build_and_stop(root, dest, 2, monkeypatch)
    if change is None:
        os.utime(root / "a" / "0001.png", ns=(0, 0))
    with pytest.raises(OutputExistsError, match=expected) as caught:
        build(root, dest, **(change or {}))
    assert "--overwrite" in str(caught.value)
    assert build(root, dest, overwrite=True, **(change or {})).found is Found.NOTHING


@pytest.mark.usefixtures("small_chunks")
def test_what_has_changed_in_the_folder_is_named(
    pictures: Pictures, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, dest = pictures(a=20, b=20), tmp_path / "stopped.zarr"
    build_and_stop(root, dest, 2, monkeypatch)
    (root / "a" / "0007.png").unlink()
    (root / "b" / "0022.png").write_bytes(b"longer than it was, or shorter")
    (root / "b" / "new 1.png").write_bytes(b"")
    (root / "b" / "new 2.png").write_bytes(b"")
    with pytest.raises(OutputExistsError, match=r"other pictures: 1 changed, 1 gone, 2 new \(first a/0007\.png\)"):
        build(root, dest)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_finished_build_is_finished(
    pictures: Pictures, build: Build, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    root = pictures(a=6, b=6)
    (root / "a" / "0001.png").write_bytes(b"")
    if sealed:  # and then killed, before the journal was gone
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(build_module.Journal, "end", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            build(root)
    else:
        build(root)
    before = Dataset.open(root.parent / "pictures.zarr").content_hash
    decoded = count_decoding(monkeypatch)
    report = build(root)
    assert (report.found, report.content_hash, decoded) == (Found.FINISHED, before, [])
    assert [failure.path for failure in report.failures] == ["a/0001.png"]
    assert not [path.name for path in report.path.iterdir() if path.name.startswith(".")], "nothing is left over"


def test_two_builds_of_one_dataset(pictures: Pictures, build: Build, tmp_path: Path) -> None:
    root, dest = pictures(a=3, b=3), tmp_path / "pictures.zarr"
    with alone_at(dest), pytest.raises(BusyError, match=r"found another one at work on it: wait until") as caught:
        build(root, dest)
    assert caught.value.exit_code == 2
    assert not dest.joinpath(LOCK_FILE).exists()
    build(root, dest)


def test_two_builds_of_one_dataset_while_one_is_writing(
    pictures: Pictures, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, dest = pictures(a=9, b=9), tmp_path / "pictures.zarr"
    writing, go_on = threading.Event(), threading.Event()
    write = shards.write_shard

    def write_slowly(*arguments: object) -> None:
        writing.set()
        assert go_on.wait(timeout=60)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "write_shard", write_slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(build, root, dest)
        assert writing.wait(timeout=60)
        for overwrite in (False, True):
            with pytest.raises(BusyError, match="found another one at work on it"):
                build(root, dest, overwrite=overwrite)
        go_on.set()
        assert first.result().found is Found.NOTHING


def test_a_task_of_a_former_run_writes_nothing(
    pictures: Pictures, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a worker of a cluster that does not know yet that its build was killed."""
    jobs: list[shards.ShardJob] = []
    run = shards.run_shard
    monkeypatch.setattr(schedule, "run_shard", lambda job, tick: jobs.append(job) or run(job, tick))
    dataset = Dataset.open(build(pictures(a=9, b=9), val=0.0).path)
    file = shard_file(dataset.path, "train", 0)
    before = file.stat().st_ino
    for run_by in (None, "somebody else"):
        if run_by:
            (dataset.path / FOLDER).mkdir()
            Journal(dataset.path).take_over(run_by)
        with pytest.raises(BusyError, match="another run has taken over"):
            run(jobs[0])
        assert file.stat().st_ino == before
    assert not list(dataset.path.rglob("*.partial"))


# Places


def test_a_finished_dataset_is_kept_without_overwrite(pictures: Pictures, build: Build) -> None:
    root = pictures(a=3, b=3)
    first = build(root)
    with pytest.raises(OutputExistsError, match=r"found a finished one of .*: choose another, or replace it with"):
        build(root, seed=1)
    assert Dataset.open(first.path).content_hash == first.content_hash
    assert build(root, seed=1, overwrite=True).content_hash != first.content_hash


def test_what_is_no_dataset_is_never_touched(pictures: Pictures, build: Build, tmp_path: Path) -> None:
    root = pictures(a=3, b=3)
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


def test_a_dataset_inside_its_pictures_is_refused(pictures: Pictures, build: Build) -> None:
    root = pictures(a=3, b=3)
    with pytest.raises(OptionError, match=r"found .* inside .*: it would be listed as pictures"):
        build(root, root / "data.zarr")


@pytest.mark.parametrize("killed_after", ["create", "nothing"])
def test_a_dataset_without_a_journal_is_begun_again(
    pictures: Pictures, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: str
) -> None:
    root, dest = pictures(a=3, b=3), tmp_path / "pictures.zarr"
    if killed_after == "create":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(build_module.Journal, "begin", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            build(root)
    else:
        dest.mkdir()
    assert build(root).found is Found.NOTHING


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"size": (0, 4)}, "at least 1x1, found 0x4"), ({"fit": "fill"}, "pad, crop, squash, found 'fill'"),
     ({"val": 1.0}, r"in \[0, 1\), found 1.0"), ({"workers": 0}, "at least one worker, found 0"),
     ({"max_failures": -1}, "0 or more, found -1"), ({"codec": "lzma"}, "none, lz4, zstd, found 'lzma'")],
)  # fmt: skip
def test_options_out_of_range(pictures: Pictures, build: Build, options: dict[str, object], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        build(pictures(a=3, b=3), **options)


def test_a_scheduler_that_cannot_be_used(pictures: Pictures, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(OptionError, match=r"found it is not installed: run .pip install"):
        build(pictures(a=3, b=3), scheduler="tcp://127.0.0.1:1")


def test_progress_is_told_in_the_main_thread_while_files_are_decoded(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = shards.frame_picture
    monkeypatch.setattr(shards, "frame_picture", lambda *args: time.sleep(0.02) or decode(*args))
    calls: list[tuple[int, int, str, int]] = []
    root = pictures(a=20, b=20)
    (root / "a" / "0001.png").write_bytes(b"")
    build_dataset(root, tmp_path / "x.zarr", BuildOptions(SIZE, val=0, workers=1), lambda *call: calls.append(call))
    assert len({done for done, *_ in calls}) >= 4, "expected progress within the one shard"
    reading = [call for call in calls if call[2] == "pictures"]
    assert reading == sorted(reading)
    assert calls[-1] == (40, 40, "pictures", 1)


def test_every_error_has_an_exit_code() -> None:
    kinds = [PipelineError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.__name__ for kind in kinds if kind.exit_code == 1} == {"BuildError", "TooManyFailures"}
