"""The parts come in order, while the rest is still being found; errors come at once, and no thread stays."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ListingError
from pipeline.scan import walk
from pipeline.scan.file_index import FileIndex, FileIndexClosed
from pipeline.scan.walk import walk_files
from tests.pipeline.conftest import failing_after
from tests.pipeline.scan.test_class_folders import tree
from tests.pipeline.scan.test_walk import open_files

PATIENCE = 10  # seconds until a test fails rather than hangs


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    with failing_after(2 * PATIENCE):
        yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("logpose-roll")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """23 files, in the order of their names."""
    return tree(tmp_path / "tree", *(f"{number // 10}/{number:02}" for number in range(23)))


class Gate:
    """An `is_own` that holds the walk at one name until it is opened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, name: str) -> bool:
        if name == self.name:
            self.reached.set()
            assert self.opened.wait(PATIENCE)
        return False


@pytest.mark.parametrize("part_rows", [1, 5, 23, 100])
def test_parts_are_full_but_the_last_and_can_be_asked_for_again(root: Path, tmp_path: Path, part_rows: int) -> None:
    expected = list(walk_files(root, tmp_path))
    with FileIndex(root, tmp_path, part_rows) as roll:
        for _ in range(2):
            parts = list(roll.parts())
            assert [file for part in parts for file in part] == expected
            assert [len(part) for part in parts[:-1]] == [part_rows] * (len(parts) - 1)
        assert (roll.found, roll.complete) == (23, True)


def test_what_is_found_can_be_worked_on_while_the_rest_is_not_found(root: Path, tmp_path: Path) -> None:
    gate = Gate("2/20")
    with FileIndex(root, tmp_path, 5, gate) as roll:
        parts = roll.parts()
        assert [next(parts)[0].name for _ in range(4)] == ["0/00", "0/05", "1/10", "1/15"]
        assert gate.reached.wait(PATIENCE)
        assert (roll.found, roll.complete) == (20, False)
        threading.Timer(0.05, gate.opened.set).start()
        assert [file.name for file in next(parts)] == ["2/20", "2/21", "2/22"]
        assert list(parts) == []
        assert (roll.found, roll.complete) == (23, True)


def test_the_jobs_own_files_are_left_out(root: Path, tmp_path: Path) -> None:
    with FileIndex(root, tmp_path, 100, lambda name: name in ("0", "1/11")) as roll:
        (part,) = roll.parts()
    assert [file.name for file in part][:3] == ["1/10", "1/12", "1/13"]


def test_nothing_found(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with FileIndex(root, tmp_path, 5) as roll:
            with pytest.raises(ListingError, match="check the path"):
                next(roll.parts())
            assert (roll.found, roll.complete) == (0, False)


def test_an_error_comes_before_the_parts_that_are_left(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate("2")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == root / "2":
            gate("2")
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with FileIndex(root, tmp_path, 5) as roll:
        parts = roll.parts()
        assert [file.name for file in next(parts)] == ["0/00", "0/01", "0/02", "0/03", "0/04"]
        gate.opened.set()
        roll._thread.join(PATIENCE)
        assert roll.found == 20
        for asked in (parts, roll.parts()):
            with pytest.raises(ListingError, match=r"found permission denied at .*2: check its rights"):
                next(asked)
        assert not roll.complete


@pytest.mark.parametrize("run_entries", [3, 100])  # the runs of the walk are what does not fit, or the spool
def test_a_full_disk_reaches_the_reader(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_entries: int
) -> None:
    monkeypatch.setattr(walk, "RUN_ENTRIES", run_entries)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with FileIndex(root, tmp_path, 5) as roll, pytest.raises(OSError, match="No space left") as caught:
        next(roll.parts())
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_reaches_a_reader_that_waits(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate("2/20")
    with FileIndex(root, tmp_path, 5, gate) as roll:
        parts = roll.parts()
        for _ in range(4):
            next(parts)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        threading.Timer(0.05, gate.opened.set).start()
        with pytest.raises(OSError, match="No space left"):
            next(parts)


def test_an_error_of_the_callers_own_function_is_raised_too(root: Path, tmp_path: Path) -> None:
    def fail(name: str) -> bool:
        raise ZeroDivisionError(name)

    with FileIndex(root, tmp_path, 5, fail) as roll, pytest.raises(ZeroDivisionError):
        next(roll.parts())


def test_a_folder_for_the_spool_that_is_not_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), FileIndex(root, tmp_path / "nowhere", 5):
        pass


@pytest.mark.parametrize("inside", ["1", "1/13"])
def test_leaving_early_ends_the_walk_also_amid_a_folder(root: Path, tmp_path: Path, inside: str) -> None:
    asked: list[str] = []
    gate = Gate(inside)

    def is_own(name: str) -> bool:
        asked.append(name)
        return gate(name)

    roll = FileIndex(root, tmp_path, 5, is_own)
    gate.opened = roll._stopped
    with roll:
        assert gate.reached.wait(PATIENCE)
    assert asked[-1] == inside
    assert not roll.complete


def test_outside_its_with_a_roll_gives_nothing_and_does_not_hang(root: Path, tmp_path: Path) -> None:
    roll = FileIndex(root, tmp_path, 5)
    with pytest.raises(FileIndexClosed):
        next(roll.parts())
    with roll:
        begun = roll.parts()
        next(begun)
        assert len(list(roll.parts())) == 5  # so that all has been found
    for parts in (begun, roll.parts()):
        with pytest.raises(FileIndexClosed):
            next(parts)


def test_a_reader_in_another_thread_is_told_that_the_roll_was_left(root: Path, tmp_path: Path) -> None:
    gate = Gate("2/20")
    told: list[BaseException] = []

    def read(roll: FileIndex) -> None:
        try:
            list(roll.parts())
        except FileIndexClosed as error:
            told.append(error)

    roll = FileIndex(root, tmp_path, 5, gate)
    gate.opened = roll._stopped
    with roll:
        reader = threading.Thread(target=read, args=(roll,))
        reader.start()
        assert gate.reached.wait(PATIENCE)
    reader.join(PATIENCE)
    assert len(told) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
@pytest.mark.parametrize("run_entries", [3, 100])
def test_nothing_stays_on_the_disk_or_open(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_entries: int
) -> None:
    monkeypatch.setattr(walk, "RUN_ENTRIES", run_entries)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = open_files()
    with FileIndex(root, scratch, 5) as roll:
        next(roll.parts())
        assert list(scratch.iterdir()) == []
    assert open_files() == before
    assert list(scratch.iterdir()) == []
