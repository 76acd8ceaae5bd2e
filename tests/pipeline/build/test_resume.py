"""Resumed builds: after a kill, a full disk or a change of the source; and two builds at the same time."""

from __future__ import annotations

import errno
import json
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

from logpose.common.errors import BusyError
from logpose.common.locks import exclusive_lock
from pipeline.build import build as build_module
from pipeline.build import scheduler, shard_task
from pipeline.build.build import BuildReport, build_dataset
from pipeline.build.destination import LOCK_FILE, ExistingBuild
from pipeline.build.journal import FOLDER, NO_FILE, Journal, ShardResult
from pipeline.build.options import BuildOptions
from pipeline.dataset.store import Dataset, shard_file
from pipeline.dataset.verify import verify_dataset
from pipeline.duplicates.fingerprint import FINGERPRINT_BYTES
from pipeline.errors import (
    BuildError,
    DatasetError,
    OutputExistsError,
)
from tests.pipeline.build.kill_builds import Builder, kill_builds
from tests.pipeline.conftest import SIZE, check_rows

Images = Callable[..., Path]
Build = Callable[..., BuildReport]


def build_and_stop(root: Path, dest: Path, after: int, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """Build until this many shards are in the journal, then fail like a full disk."""
    written: list[object] = []
    write = shard_task.write_shard

    def write_some(*arguments: object) -> None:
        if len(written) == after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*arguments)  # type: ignore[arg-type]
        written.append(arguments)

    with monkeypatch.context() as patch, pytest.raises(BuildError, match="no space left on device") as caught:
        patch.setattr(shard_task, "write_shard", write_some)
        build_dataset(root, dest, BuildOptions(**({"size": SIZE, "workers": 1} | options)))  # type: ignore[arg-type]
    assert "free some space and run the same build again" in str(caught.value)
    assert caught.value.exit_code == 1


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list to which each file is added when it is decoded."""
    decoded: list[Path] = []
    decode = shard_task.decode_image

    def count(path: Path, *rest: object) -> object:
        decoded.append(path)
        return decode(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_task, "decode_image", count)
    return decoded


def test_names_in_the_journal_never_change(tmp_path: Path) -> None:
    """Otherwise builds that an earlier logpose began could not be resumed."""
    journal = Journal(tmp_path)
    journal.begin({"pictures": "hash"}, [])
    result = ShardResult("train", 3, (1, 2), ((2, "empty", "no bytes"),), (1, 2, 3), (4, 5, 6), "digest")
    journal.add(result, [], np.empty((0, FINGERPRINT_BYTES), np.uint8))
    assert json.loads((tmp_path / FOLDER / "train-00003.json").read_text()) == {
        "part": "train", "shard": 3, "wanted": [1, 2], "failures": [[2, "empty", "no bytes"]],
        "sums": [1, 2, 3], "squares": [4, 5, 6], "digest": "digest", "crc32": 3094203442,
    }  # fmt: skip
    assert journal.results(3) == {("train", 3): result}
    assert result.files == (1, NO_FILE)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("after", [0, 1, 3, 5, 6, 7])
def test_build_resumes_after_a_full_disk(
    image_folder: Images, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    root = image_folder(a=20, b=20)
    for number in (3, 19):  # so that there is a second round, which rewrites shards
        (root / "a" / f"{number:04d}.png").write_bytes(b"")
    uninterrupted = build(root, tmp_path / "uninterrupted.zarr")
    build_and_stop(root, tmp_path / "stopped.zarr", after, monkeypatch)
    report = build(root, tmp_path / "stopped.zarr")
    assert report.existing is ExistingBuild.UNFINISHED
    assert report.content_hash == uninterrupted.content_hash
    assert report.failures == uninterrupted.failures
    dataset = Dataset.open(report.path)
    check_rows(dataset.train, dataset.class_names)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("after", [3, 6])
def test_resumed_build_decodes_only_missing_rows(
    image_folder: Images, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    root = image_folder(a=20, b=20)
    broken = {root / "a" / "0003.png", root / "a" / "0019.png"}
    for file in broken if after == 6 else ():  # the five shards, and one of the second round
        file.write_bytes(b"")
    build_and_stop(root, tmp_path / "stopped.zarr", after, monkeypatch, val=0.0)
    decoded = count_decoding(monkeypatch)
    build(root, tmp_path / "stopped.zarr", val=0.0)
    assert len(decoded) == 40 - 3 * 8 if after == 3 else len(decoded) <= 2
    assert not broken & set(decoded) or after == 3, "failures are recorded"


@pytest.mark.usefixtures("small_chunks")
def test_deleted_shard_is_written_again(
    image_folder: Images, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(a=20, b=20)
    for number in (3, 19):  # so that shards are read again for the second round
        (root / "a" / f"{number:04d}.png").write_bytes(b"")
    uninterrupted = build(root, tmp_path / "uninterrupted.zarr", val=0.0)
    build_and_stop(root, tmp_path / "stopped.zarr", 4, monkeypatch, val=0.0)
    files = [shard_file(tmp_path / "stopped.zarr", "train", shard) for shard in range(5)]
    next(file for file in files[1:] if file.is_file()).unlink()  # Dask has its own order
    report = build(root, tmp_path / "stopped.zarr", val=0.0)
    assert report.content_hash == uninterrupted.content_hash
    assert verify_dataset(report.path).damage == ()


@pytest.mark.usefixtures("small_chunks")
def test_second_round_reuses_stored_rows(
    image_folder: Images, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(a=20, b=20)
    (root / "a" / "0003.png").write_bytes(b"")
    decoded = count_decoding(monkeypatch)
    build(root, val=0.0)
    assert len(decoded) <= 41, "all files once, and once more the one that takes the empty row"


SLOW_BUILD = """
import signal, sys, time
from pathlib import Path
from pipeline.dataset import schema
from pipeline.build import shard_task
from pipeline.build.build import build_dataset
from pipeline.build.options import BuildOptions

schema.CHUNK_BYTES, schema.SHARD_CHUNKS = 4 * 8 * 12 * 3, 2
signal.signal(signal.SIGINT, signal.default_int_handler)  # in case the tests run in the background
decode = shard_task.decode_image
shard_task.decode_image = lambda *arguments: time.sleep(0.01) or decode(*arguments)
build_dataset(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions((8, 12), workers=2))
"""


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("signalled", [signal.SIGKILL, signal.SIGINT])
def test_killed_build_resumes(image_folder: Images, build: Build, tmp_path: Path, signalled: signal.Signals) -> None:
    root, dest = image_folder(a=60, b=60), tmp_path / "killed.zarr"
    (root / "a" / "0003.png").write_bytes(b"")
    process = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, root, dest], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(dest.glob(f"{FOLDER}/*-*.json"))) < 3:
        assert process.poll() is None, f"the build ended early: {process.communicate()[1].decode()}"
        assert time.monotonic() < deadline, "no shard after 120 s"
        time.sleep(0.01)
    process.send_signal(signalled)
    process.communicate(timeout=120)  # a hang, not a slow machine
    assert process.returncode != 0
    with pytest.raises(DatasetError, match=r"found an unfinished build at .*: run the same 'logpose build'"):
        Dataset.open(dest)
    report = build(root, dest)
    assert report.existing is ExistingBuild.UNFINISHED
    assert report.content_hash == build(root, tmp_path / "uninterrupted.zarr").content_hash
    assert not list(dest.rglob("*.partial"))


def test_builds_killed_at_random_moments(image_folder: Images, tmp_path: Path) -> None:
    """A short run of `python -m tests.pipeline.build.kill_builds`."""
    root = image_folder(a=150, b=150)
    for number in (3, 160, 299):
        (root / ("a" if number < 150 else "b") / f"{number:04d}.png").write_bytes(b"")
    builder = Builder(root, size=12, workers=2, chunk_bytes=4 * 12 * 12 * 3, shard_chunks=2)
    done, _, rows = kill_builds(builder, kills=4, seed=5, folder=tmp_path)
    assert rows == 8
    assert sum(kill.hits for kill in done) == 4


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_build_on_a_full_disk(image_folder: Images, build: Build, tmp_path: Path) -> None:
    """A real disk of 2 MB, at first almost filled by another file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"no small disk could be mounted: {mount.stderr.decode()}")
    try:
        root = image_folder(a=40, b=40)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1_900_000))
        with pytest.raises(BuildError, match=r"found no space left on device at .*: free some space and run") as caught:
            build(root, disk / "images.zarr", size=(32, 32))
        assert caught.value.exit_code == 1
        assert not list(disk.rglob("*.partial"))
        for used in (1_700_000, 1_500_000, 1_300_000, 0):
            ballast.write_bytes(bytes(used))
            with suppress(BuildError):
                build(root, disk / "images.zarr", size=(32, 32))
        report = build(root, disk / "images.zarr", size=(32, 32))
        assert report.content_hash == build(root, tmp_path / "elsewhere.zarr", size=(32, 32)).content_hash
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("change", "expected"),
    [({"val": 0.3}, "found --val 0.3 instead of 0.1"), ({"seed": 5}, "--seed 5 instead of 0"),
     ({"fit": "crop"}, "--fit crop instead of pad"), (None, "other images: 1 changed .first a/0001.png.: use")],
)  # fmt: skip
def test_build_with_other_images_or_options_does_not_resume(
    image_folder: Images, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object] | None, expected: str,
) -> None:  # fmt: skip
    root, dest = image_folder(a=20, b=20), tmp_path / "stopped.zarr"
    build_and_stop(root, dest, 2, monkeypatch)
    if change is None:
        os.utime(root / "a" / "0001.png", ns=(0, 0))
    with pytest.raises(OutputExistsError, match=expected) as caught:
        build(root, dest, **(change or {}))
    assert "--overwrite" in str(caught.value)
    assert build(root, dest, overwrite=True, **(change or {})).existing is ExistingBuild.NONE


@pytest.mark.usefixtures("small_chunks")
def test_changes_of_the_folder_are_reported(
    image_folder: Images, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, dest = image_folder(a=20, b=20), tmp_path / "stopped.zarr"
    build_and_stop(root, dest, 2, monkeypatch)
    (root / "a" / "0007.png").unlink()
    (root / "b" / "0022.png").write_bytes(b"another size")
    (root / "b" / "new 1.png").write_bytes(b"")
    (root / "b" / "new 2.png").write_bytes(b"")
    with pytest.raises(OutputExistsError, match=r"other images: 1 changed, 1 missing, 2 new \(first a/0007\.png\)"):
        build(root, dest)


@pytest.mark.parametrize("sealed", [False, True])
def test_finished_build_is_not_repeated(
    image_folder: Images, build: Build, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    root = image_folder(a=6, b=6)
    (root / "a" / "0001.png").write_bytes(b"")
    if sealed:  # killed before the journal was deleted
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(build_module.Journal, "end", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            build(root)
    else:
        build(root)
    before = Dataset.open(root.parent / "images.zarr").content_hash
    decoded = count_decoding(monkeypatch)
    report = build(root)
    assert (report.existing, report.content_hash, decoded) == (ExistingBuild.FINISHED, before, [])
    assert [failure.path for failure in report.failures] == ["a/0001.png"]
    assert not [path.name for path in report.path.iterdir() if path.name.startswith(".")], "no temporary files are left"


def test_second_build_of_a_locked_dataset_is_refused(image_folder: Images, build: Build, tmp_path: Path) -> None:
    root, dest = image_folder(a=3, b=3), tmp_path / "images.zarr"
    found = r"found another process at work on it: wait until"
    dest.mkdir()
    with exclusive_lock(dest / LOCK_FILE, f"build of {dest}"), pytest.raises(BusyError, match=found) as caught:
        build(root, dest)
    assert caught.value.exit_code == 2
    assert not dest.joinpath(LOCK_FILE).exists()
    build(root, dest)


def test_second_build_is_refused_while_the_first_writes(
    image_folder: Images, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, dest = image_folder(a=9, b=9), tmp_path / "images.zarr"
    writing, proceed = threading.Event(), threading.Event()
    write = shard_task.write_shard

    def write_slowly(*arguments: object) -> None:
        writing.set()
        assert proceed.wait(timeout=60)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_task, "write_shard", write_slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(build, root, dest)
        assert writing.wait(timeout=60)
        for overwrite in (False, True):
            with pytest.raises(BusyError, match="found another process at work on it"):
                build(root, dest, overwrite=overwrite)
        proceed.set()
        assert first.result().existing is ExistingBuild.NONE


def test_task_of_an_earlier_run_writes_nothing(
    image_folder: Images, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the worker of a cluster that keeps running after its build was killed."""
    jobs: list[shard_task.ShardJob] = []
    run = shard_task.run_shard
    monkeypatch.setattr(scheduler, "run_shard", lambda job, on_file: jobs.append(job) or run(job, on_file))
    dataset = Dataset.open(build(image_folder(a=9, b=9), val=0.0).path)
    file = shard_file(dataset.path, "train", 0)
    before = file.stat().st_ino
    for run_id in (None, "another run"):
        if run_id:
            (dataset.path / FOLDER).mkdir()
            Journal(dataset.path).claim(run_id)
        with pytest.raises(BusyError, match="another run has claimed it"):
            run(jobs[0])
        assert file.stat().st_ino == before
    assert not list(dataset.path.rglob("*.partial"))


def test_journal_of_version_0_1_has_todays_kinds_of_failure() -> None:
    entry = {
        "part": "train", "shard": 0, "wanted": [3], "failures": [[4, "not-a-picture", "unknown format"]],
        "sums": [0, 0, 0], "squares": [0, 0, 0], "digest": "00",
    }  # fmt: skip
    assert ShardResult.from_json(entry).failures == ((4, "not-an-image", "unknown format"),)
