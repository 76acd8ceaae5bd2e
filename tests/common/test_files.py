"""Atomic writes: a file is complete or unchanged."""

import os
from pathlib import Path

import pytest

from logpose.common.files import atomic_writer, write_atomically


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
