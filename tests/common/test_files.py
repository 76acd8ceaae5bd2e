"""Files: a write is complete or leaves the file unchanged, and is durable; only regular files are read; locks."""

import errno
import fcntl
import os
import re
import socket
import stat
from pathlib import Path

import pytest

from logpose.common import files, notices
from logpose.common.errors import BusyError, PathError
from logpose.common.files import atomic_writer, make_folder, read_regular, sync, write_atomically, write_replaceable
from logpose.common.locks import exclusive_lock


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "a.txt"
    write_atomically(path, "old")
    with pytest.raises(RuntimeError, match="half-way"), atomic_writer(path) as file:
        file.write(b"ne")
        raise RuntimeError("half-way")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_atomically(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("kind", ["file", "link", "pipe"])
def test_what_a_killed_write_left_is_replaced(tmp_path: Path, kind: str) -> None:
    left, other = tmp_path / ".a.tmp", tmp_path / "other"
    other.write_text("other")
    if kind == "file":
        left.write_text("half")
    elif kind == "link":
        left.symlink_to(other)
    else:
        os.mkfifo(left)
    write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new" and other.read_text() == "other"
    assert not left.exists() and not (tmp_path / "a").is_symlink()


def test_text_that_is_not_valid_utf8_is_written_unchanged(tmp_path: Path) -> None:
    write_atomically(tmp_path / "names", b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "names").read_bytes() == b"caf\xe9"


def test_new_folders_are_synced_in_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    write_atomically(tmp_path / "a" / "b" / "c.txt", "new")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 3, "no new name"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_file_system_that_cannot_sync_folders_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(notices, "_said", set())
    fail_for_folders(monkeypatch, code)
    write_atomically(tmp_path / "a.txt", "new")
    write_atomically(tmp_path / "b" / "b.txt", "new")
    assert (tmp_path / "b" / "b.txt").read_text() == "new"
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        f"the file system of {tmp_path} cannot sync folders"
    ]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EBADF, errno.ENOSPC])
def test_error_of_a_folder_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fail_for_folders(monkeypatch, code)
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
        write_atomically(tmp_path / "a.txt", "new")
    assert caught.value.filename == str(tmp_path)


def fail_for_folders(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match=f"not a regular file|No such device or address.*{re.escape(str(path))}"):
        read_regular(path)


# Locks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with exclusive_lock(tmp_path / ".lock", "build"):
            pass
    [record] = caplog.records
    assert record.getMessage() == (
        f"the file system of {tmp_path} has no locks ({os.strerror(code).lower()}): do not start a second build while"
        " this one runs"
    )
    assert not list(tmp_path.iterdir())


def test_second_lock_is_refused(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / ".lock", "build"):
        with pytest.raises(BusyError, match="the only build"), exclusive_lock(tmp_path / ".lock", "build"):
            pass
        assert (tmp_path / ".lock").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_lock_that_the_system_fails_to_take_is_not_another_process_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=r"\.lock") as caught, exclusive_lock(tmp_path / ".lock", "build"):
        pass
    assert caught.value.errno == code


def test_error_of_a_sync_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        sync(tmp_path)


def test_lock_on_a_deleted_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, flock = tmp_path / ".lock", fcntl.flock
    releases = iter([True, False])  # the process that had the lock releases it between our open and our flock

    def late(*arguments: int) -> None:
        if next(releases, False):
            lock.unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    with exclusive_lock(lock, "build"):
        with pytest.raises(BusyError, match="the only build"), exclusive_lock(lock, "build"):
            pass
        assert lock.exists()


def test_folder_of_a_lock_may_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, opened = tmp_path / "new" / ".lock", os.open
    vanishes = iter([True])  # another process that made the folder removes it again

    def late(path: Path, *arguments: int) -> int:
        if path == lock and next(vanishes, False):
            lock.parent.rmdir()
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", late)
    with exclusive_lock(lock, "build"):
        assert lock.exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_folder_without_room_for_a_lock_is_an_error() -> None:
    with pytest.raises(FileNotFoundError), exclusive_lock(Path("/proc/self/.lock"), "build"):
        pass


def test_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "nowhere" / "file")
    with pytest.raises(OSError, match=r"\.lock"), exclusive_lock(tmp_path / ".lock", "build"):
        pass


# Outputs without a lock -------------------------------------------------------------------------------


def test_two_writers_of_an_output_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, fsync, others = tmp_path / "report.html", os.fsync, iter([b"ours, the other's"])

    def meanwhile(descriptor: int) -> None:
        if content := next(others, None):
            write_replaceable(out, content, b"ours", "a report")
            assert out.read_bytes() == content
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_replaceable(out, b"ours, too", b"ours", "a report")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] and out.read_bytes() == b"ours, too"


def test_file_that_appears_while_an_output_is_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    monkeypatch.setattr(os, "fsync", lambda _: out.write_bytes(b"precious"))
    with pytest.raises(PathError, match="exists and is not a report"):
        write_replaceable(out, b"ours", b"ours", "a report")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] and out.read_bytes() == b"precious"
