"""Builds whose source cannot be read for a while: nothing is recorded, and a rerun looks again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.build import shard_task
from pipeline.build.build import BuildReport
from pipeline.build.destination import ExistingBuild
from pipeline.dataset.store import Dataset
from pipeline.errors import BuildError, DatasetError, DecodeError, OutputExistsError, ReadError
from pipeline.failure_jump import WINDOW, FailureJump
from tests.pipeline.build.test_duplicate_groups import draw_noise
from tests.pipeline.conftest import check_rows

Images = Callable[..., Path]
Build = Callable[..., BuildReport]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.faults.PAUSES", (0, 0))


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], None]]:
    """What to do before a file is decoded, by the end of its path."""
    actions: dict[str, Callable[[], None]] = {}
    decode = shard_task.decode_image

    def act(path: str, *rest: object) -> object:
        actions.get("/".join(path.split("/")[-2:]), lambda: None)()
        return decode(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_task, "decode_image", act)
    return actions


def denied() -> None:
    raise DecodeError("unreadable", "permission denied")


def fail_as_a_full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("small_chunks")
def test_source_that_goes_away_stops_the_build_and_it_resumes(
    image_folder: Images, build: Build, tmp_path: Path, decoding: dict[str, Callable[[], None]]
) -> None:
    root = image_folder(a=20, b=20)
    whole = build(root, tmp_path / "whole.zarr")
    away = tmp_path / "away"
    decoding["a/0009.png"] = lambda: root.exists() and root.rename(away) and None  # type: ignore[func-returns-value]
    with pytest.raises(ReadError, match=r"found no such file.*: check that its drive is mounted, and run") as caught:
        build(root)
    assert caught.value.exit_code == 1
    with pytest.raises(DatasetError, match="unfinished build"):
        Dataset.open(tmp_path / "images.zarr")
    decoding.clear()
    away.rename(root)
    report = build(root)
    assert report.existing is ExistingBuild.UNFINISHED
    assert (report.failures, report.content_hash) == ((), whole.content_hash)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rounds", ["first", "second"])
@pytest.mark.parametrize("comes_back", [True, False])
def test_resumed_build_looks_again_at_unreadable_files(
    image_folder: Images, build: Build, tmp_path: Path, decoding: dict[str, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch, rounds: str, comes_back: bool,
) -> None:  # fmt: skip
    root = image_folder(a=20, b=20)
    for name in ("a/0003.png", "b/0030.png"):
        decoding[name] = denied
    without = build(root, tmp_path / "without.zarr")
    assert len(without.failures) == 2
    stop = "pipeline.build.rounds.Rounds._find_duplicates" if rounds == "first" else "pipeline.build.build._finish"
    with monkeypatch.context() as patch, pytest.raises(BuildError):
        patch.setattr(stop, fail_as_a_full_disk)
        build(root)
    if comes_back:
        decoding.clear()
    report = build(root)
    assert report.existing is ExistingBuild.UNFINISHED
    expected = build(root, tmp_path / "whole.zarr") if comes_back else without
    assert (report.content_hash, report.failures) == (expected.content_hash, expected.failures)
    dataset = Dataset.open(report.path)
    check_rows(dataset.train, dataset.class_names)


def test_file_that_can_be_read_again_is_compared_with_all(
    build: Build, tmp_path: Path, decoding: dict[str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups of near-duplicates that an earlier run recorded lack it."""
    root = tmp_path / "copies"
    for seed in range(12):
        draw_noise(root / "ab"[seed % 2] / f"{seed:02}.png", seed)
    for number in range(3):
        shutil.copy(root / "a" / "00.png", root / "a" / f"{90 + number}.png")
    options = {"size": (32, 32), "val": 0.3}
    whole = build(root, tmp_path / "whole.zarr", **options)
    assert whole.duplicates is not None
    assert whole.duplicates.images == 4
    decoding["a/91.png"] = denied
    with monkeypatch.context() as patch, pytest.raises(BuildError):
        patch.setattr("pipeline.build.build._finish", fail_as_a_full_disk)
        build(root, **options)
    decoding.clear()
    report = build(root, **options)
    assert report.existing is ExistingBuild.UNFINISHED
    assert (report.duplicates, report.content_hash) == (whole.duplicates, whole.content_hash)


def test_finished_build_looks_again_at_unreadable_files(
    image_folder: Images, build: Build, decoding: dict[str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(a=5, b=5)
    decoding["a/0003.png"] = denied
    (root / "b" / "0006.png").write_bytes(b"")
    assert len(build(root).failures) == 2
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.destination.can_be_read", lambda path: False)
        assert build(root).existing is ExistingBuild.FINISHED
    decoding.clear()
    with pytest.raises(OutputExistsError, match=r"lacks 1 file .*can be now \(first a/0003.png\): .*--overwrite"):
        build(root)
    assert [failure.path for failure in build(root, overwrite=True).failures] == ["b/0006.png"]
    assert build(root).existing is ExistingBuild.FINISHED


def test_jump_in_the_share_of_failures_is_noticed() -> None:
    watch = FailureJump()
    for file in range(3 * WINDOW):
        watch.count(file % 20 == 0)
    assert watch.note is None
    for _ in range(WINDOW):
        watch.count(True)
    assert watch.note is not None
    assert "could not be read, of the next" in watch.note
    before = watch.note
    watch.count(False)
    assert watch.note != before, "the counts go on"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_steady_share_of_failures_is_no_jump(share: float) -> None:
    watch = FailureJump()
    for file in range(20 * WINDOW):
        watch.count(file * share % 1 >= 1 - share if share < 1 else True)
    assert watch.note is None


def test_build_reports_a_jump(image_folder: Images, build: Build, decoding: dict[str, Callable[[], None]]) -> None:
    root = image_folder(a=100, b=100)
    tried = 0

    def fail_later() -> None:
        nonlocal tried
        tried += 1
        if tried > 80:
            denied()

    decoding |= {f"{'ab'[number // 100]}/{number:04d}.png": fail_later for number in range(200)}
    report = build(root, workers=1)
    assert report.jump is not None
    assert report.jump.startswith("of the first ")
