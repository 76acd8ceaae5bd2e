"""Walking a tree: every file once, in the order of sorted paths, in constant memory."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import ListingError, ReadError
from pipeline.scan import walk
from pipeline.scan.walk import FoundFile, Spool, walk_files
from tests.pipeline.conftest import failing_after
from tests.pipeline.scan.test_class_folders import tree


def names(root: Path, scratch: Path) -> list[str]:
    return [file.name for file in walk_files(root, scratch)]


# Characters that sort around '/' (0x2F): ' ' '!' '-' '.' before it, '0' after it; the least control character that a
# name can hold; one beyond 16 bits; and, where the file system accepts it, a byte that is not valid UTF-8.
CHARACTERS = ["a", "b", "0", "-", ".", " ", "!", "\n", "\x01", "é", "写", "🏴"]
if sys.platform == "linux":
    CHARACTERS.append("\udcff")
COMPONENTS = st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=3).filter(lambda name: name[0] != ".")
PATHS = st.lists(st.lists(COMPONENTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=25)


def make(root: Path, paths: list[str]) -> list[str]:
    """Touch each file unless its path conflicts with an earlier one; return the files made, sorted."""
    made = set()
    for path in paths:
        try:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch(exist_ok=True)
        except OSError:  # a file where a folder is needed, or a folder of this name
            continue
        if (root / path).is_file():
            made.add(path)
    return sorted(made)


@given(PATHS, st.sampled_from([1, 2, 3, 100]))
@example(["a", "a-", "a b", "a!", "a0", "a.b/c", "ab/c", "a-b", "b/c", "b-/c", "b.", "b0/c", "b\x01"], 100)
@example(["a/c", "a-", "a b/c", "a!", "a0", "a-/c", "a./c", "a\n"], 2)
def test_order_is_that_of_sorted_paths(paths: list[str], run_entries: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root, scratch = Path(folder, "tree"), Path(folder, "scratch")
        root.mkdir()
        scratch.mkdir()
        patch.setattr(walk, "RUN_ENTRIES", run_entries)
        patch.setattr(walk, "BLOCK_BYTES", 16)  # records are longer
        made = make(root, paths)
        assert names(root, scratch) == made


def test_long_names_and_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "RUN_ENTRIES", 7)
    long = [f"{number * 7919 % 300}{'x' * (number % 240)}" for number in range(300)]
    tree(tmp_path / "tree", *long, *(f"deep/{name}" for name in long))
    assert names(tmp_path / "tree", tmp_path) == sorted([*long, *(f"deep/{name}" for name in long)])


def test_sizes_and_times_are_those_of_the_files_behind_links(tmp_path: Path) -> None:
    tree(tmp_path, "tree/empty", "else")
    (tmp_path / "tree/some").write_bytes(b"12345")
    os.utime(tmp_path / "tree/some", ns=(1, 1_234_567_890_123_456_789))
    os.utime(tmp_path / "tree/empty", ns=(1, 5))
    (tmp_path / "tree/link").symlink_to("some")
    (tmp_path / "tree/dangling").symlink_to("nowhere")
    (tmp_path / "tree/itself").symlink_to("itself")
    assert list(walk_files(tmp_path / "tree", tmp_path)) == [
        FoundFile("dangling", -1, 0),
        FoundFile("empty", 0, 5),
        FoundFile("itself", -1, 0),
        FoundFile("link", 5, 1_234_567_890_123_456_789),
        FoundFile("some", 5, 1_234_567_890_123_456_789),
    ]


def test_hidden_files_and_clutter_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path, "a/1", "b/2", "3", ".x", "a/.DS_Store", "a/Thumbs.db", ".git/x/y", "__MACOSX/a/1", "b/.hidden/3")
    assert names(tmp_path, tmp_path) == ["3", "a/1", "b/2"]


def test_links_are_followed_but_not_in_cycles(tmp_path: Path) -> None:
    tree(tmp_path, "tree/a/1", "tree/a/deep/2", "tree/b/3", "outside/4")
    (tmp_path / "tree/a/deep/round").symlink_to(tmp_path / "tree/a")
    (tmp_path / "tree/a/top").symlink_to(tmp_path / "tree")
    (tmp_path / "tree/b/out").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/back").symlink_to(tmp_path / "tree/b")  # below a folder that was itself reached by a link
    (tmp_path / "tree/c").symlink_to(tmp_path / "tree/b")
    (tmp_path / "root").symlink_to(tmp_path / "tree")
    expected = ["a/1", "a/deep/2", "b/3", "b/out/4", "c/3", "c/out/4"]
    with failing_after(20):
        assert names(tmp_path / "tree", tmp_path) == expected
        assert names(tmp_path / "root", tmp_path) == expected


def test_folders_may_be_nested_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    folders = [tmp_path]
    for _ in range(sys.getrecursionlimit() + 100):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    (folders[-1] / "end").touch()
    assert names(tmp_path, tmp_path) == ["d/" * (len(folders) - 1) + "end"]
    (folders[-1] / "end").unlink()
    for folder in reversed(folders[1:]):  # pytest calls shutil.rmtree, which is recursive
        folder.rmdir()


def test_path_of_a_file_gives_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"123")
    (tmp_path / ".hidden.jpg").symlink_to(tmp_path / "nowhere")
    (file,) = walk_files(tmp_path / "a.jpg", tmp_path)
    assert (file.name, file.size) == ("a.jpg", 3)
    assert list(walk_files(tmp_path / ".hidden.jpg", tmp_path)) == [FoundFile(".hidden.jpg", -1, 0)]


def test_excluded_files_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path, "a/1", "a/own/2", "a/own/deep/3", "b/own", "own-not/4", "own")
    asked: list[str] = []

    def exclude(name: str) -> bool:
        asked.append(name)
        return name in ("a/own", "own")

    assert [file.name for file in walk_files(tmp_path, tmp_path, exclude)] == ["a/1", "b/own", "own-not/4"]
    assert sorted(asked) == ["a", "a/1", "a/own", "b", "b/own", "own", "own-not", "own-not/4"]


def test_nothing_to_list_raises_listing_error(tmp_path: Path) -> None:
    tree(tmp_path, "hidden/.x", "own/1", "folders/a/b/.x")
    with pytest.raises(ListingError, match=r"^expected images, found nothing at .*nowhere: check the path$"):
        names(tmp_path / "nowhere", tmp_path)
    for root in ("hidden", "folders"):
        with pytest.raises(ListingError, match=rf"^expected .* found no file in .*{root}: check the path$"):
            names(tmp_path / root, tmp_path)
    for path in ("own", "own/1"):
        with pytest.raises(ListingError, match="found no file in"):
            list(walk_files(tmp_path / path, tmp_path, lambda name: name == "1"))


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Refuse to list the folders of this name."""
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == name:
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_pipe_as_the_only_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ListingError, match=r"or an image, found a pipe, socket or device at .*pipe: check"):
        list(walk_files(tmp_path / "pipe", tmp_path))


def test_folder_that_may_not_be_read_is_listed_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1", "a/locked-2", "a/locked/2", "a/locked.3", "b/4")
    refusing(monkeypatch, "locked", errno.EACCES)
    assert names(tmp_path, tmp_path) == ["a/1", "a/locked-2", "a/locked.3", "a/locked/", "b/4"]
    refusing(monkeypatch, tmp_path.name, errno.EACCES)
    with pytest.raises(ListingError, match=r"found permission denied at .*: check its permissions"):
        names(tmp_path, tmp_path)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOENT])
def test_fault_of_the_system_ends_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr("pipeline.faults.PAUSES", (0, 0))
    tree(tmp_path, "a/1", "b/2")
    refusing(monkeypatch, "b", code)
    files = walk_files(tmp_path, tmp_path)
    assert next(files).name == "a/1"
    with pytest.raises(ReadError, match=r"expected to read .*b, found .*, and run the same command again") as caught:
        next(files)
    assert caught.value.exit_code == 1


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_one_descriptor_for_each_large_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "RUN_ENTRIES", 2)
    tree(tmp_path / "tree", *(f"a/{number}" for number in range(50)), "b", "c", "d")
    (tmp_path / "scratch").mkdir()
    before = open_files()
    files = walk_files(tmp_path / "tree", tmp_path / "scratch")
    assert next(files).name == "a/0"
    assert open_files() == before + 2  # for the root and for a/, whatever the number of runs
    assert list((tmp_path / "scratch").iterdir()) == []
    files.close()
    assert open_files() == before


def test_full_disk_raises_oserror_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "RUN_ENTRIES", 2)
    tree(tmp_path / "tree", "a", "b", "c")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as caught:
        names(tmp_path / "tree", tmp_path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))


def test_spool_survives_short_writes_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: pwrite(file, data[:5], place))
    spool = Spool(tmp_path)
    first = spool.append(["one\x001\x002", "two/"])
    second = spool.append(["\udcff🏴"])
    assert (first[0], second[0]) == (0, first[1])
    for block in range(1, 30):
        monkeypatch.setattr(walk, "BLOCK_BYTES", block)
        assert list(spool.read(*second)) == ["\udcff🏴"]
        assert list(spool.read(*first)) == ["one\x001\x002", "two/"]
    spool.close()


def peak_memory(count: int, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Peak bytes allocated by Python while a folder of `count` files is walked."""
    status = SimpleNamespace(st_size=123_456, st_mtime_ns=1_700_000_000_123_456_789)

    @contextmanager
    def scandir(_: Path) -> Iterator[Iterator[SimpleNamespace]]:
        yield (
            SimpleNamespace(name=f"{number * 7919 % count:09}.jpg", path="", is_dir=lambda: False, stat=lambda: status)
            for number in range(count)
        )

    monkeypatch.setattr(os, "scandir", scandir)
    tracemalloc.start()
    found = sum(1 for _ in walk_files(scratch, scratch))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == count
    return peak


def test_memory_does_not_grow_with_the_files_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_memory(60_000, tmp_path, monkeypatch) < 4e6
    monkeypatch.setattr(walk, "RUN_ENTRIES", 4096)
    few = peak_memory(6_000, tmp_path, monkeypatch)
    assert peak_memory(60_000, tmp_path, monkeypatch) < 2 * few
