"""A file is whole or not there, whatever happens while it is written."""

from pathlib import Path

import pytest

from logpose.common.files import atomic_writer, write_atomically


def test_the_old_file_stays_till_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "results" / "a.txt"
    write_atomically(path, "old")
    with pytest.raises(RuntimeError, match="half-way"), atomic_writer(path) as file:
        file.write(b"ne")
        raise RuntimeError("half-way")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_file_names_that_are_no_utf8_come_out_as_they_went_in(tmp_path: Path) -> None:
    write_atomically(tmp_path / "names", b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "names").read_bytes() == b"caf\xe9"
