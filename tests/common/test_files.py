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
from logpose.common.errors import BusyError
from logpose.common.files import atomic_writer, make_folder, read_regular, write_atomically
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
