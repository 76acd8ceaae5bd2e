"""Paths that users give: outputs that are no plain files, links, URLs; and other files, which are never replaced."""

import os
import socket
from pathlib import Path

import pytest

from logpose.common.errors import BusyError, PathError
from logpose.common.files import write_atomically
from logpose.common.locks import output_lock
from logpose.common.outputs import local_path, output_file, replaceable_file

KINDS = ("folder", "pipe", "socket", "device", "link to a device", "link to a pipe")


def special(folder: Path, kind: str) -> Path:
    """Make something that is no plain file, and return its path."""
    path = folder / "special"
    if kind.startswith("link"):
        path.symlink_to(special(folder / "behind", kind.rpartition(" ")[2]))
        return path
    folder.mkdir(exist_ok=True)
    if kind == "device":
        return Path("/dev/null")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_only_plain_files_are_replaced(tmp_path: Path, kind: str) -> None:
    path = special(tmp_path, kind)
    before = os.lstat(path)
    message = f"^expected a file to write, found a {kind.rpartition(' ')[2]} at .*; give the name of a file$"
    for write in (output_file, lambda path: write_atomically(path, "new")):
        with pytest.raises(PathError, match=message):
            write(path)
    after = os.lstat(path)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)


def test_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for name in ("old", "new"):  # of an existing file, and of none
        link = tmp_path / name
        link.symlink_to(f"store/{name}.csv")
    (tmp_path / "store" / "old.csv").write_text("old")
    for name in ("old", "new"):
        write_atomically(tmp_path / name, "content")
        assert (tmp_path / name).is_symlink() and (tmp_path / "store" / f"{name}.csv").read_text() == "content"
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["new.csv", "old.csv"]
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(loop, "content")


@pytest.mark.parametrize("text", ["s3://bucket/d.zarr", "gs://b", "https://host/a/b.csv", "file:///a", "hdfs://a:9/b"])
def test_urls_are_refused(text: str) -> None:
    with pytest.raises(PathError, match=f"^expected a path on this machine, found the URL {text.split('//')[0]}//"):
        local_path(Path(text))


@pytest.mark.parametrize("text", ["a", "/a/b", "C:/data", "a:b/c", "a b:/c", "s3", "../s3:x/a"])
def test_paths_are_not_urls(text: str) -> None:
    assert local_path(Path(text)) == Path(text)


def test_folder_whose_name_looks_like_a_url_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    assert local_path(Path("s3:/bucket")) == Path("s3:/bucket")


def test_tilde_is_refused_unless_there_is_such_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PathError, match=r"^expected a path, found ~, which the shell did not expand, in ~/d\.zarr;"):
        local_path(Path("~/d.zarr"))
    (tmp_path / "~").mkdir()
    assert local_path(Path("~/d.zarr")) == Path("~/d.zarr")
    assert local_path(Path("~user")) == Path("~user")


def test_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / "loop" / "inside"):
        with pytest.raises(PathError, match=r"^expected a path, found a link that leads to itself at .*; remove it$"):
            local_path(path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_open_files_are_not_replaced(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        for folder in ("/dev/fd", "/proc/self/fd"):
            with pytest.raises(PathError, match=r"^expected a file to write, found a device at"):
                output_file(Path(folder, str(file.fileno())))


def test_only_our_own_files_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    assert replaceable_file(path, b"ours", "a report") == path
    for content in (b"", b"it is ours"):
        path.write_bytes(content)
        assert replaceable_file(path, b"ours", "a report") == path
    path.write_bytes(b"precious")
    with pytest.raises(PathError, match=r"a\.html exists and is not a report of logpose; choose another name"):
        replaceable_file(path, b"ours", "a report")


def test_lock_of_an_output_is_the_same_by_any_name(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "out"
    (tmp_path / "link").symlink_to(out)
    with output_lock(out, "work on it"):
        assert [path.name for path in out.parent.iterdir()] == [".out.lock"]
        for other in (out.parent / ".." / "folder" / "out", tmp_path / "link"):
            with pytest.raises(BusyError, match="expected to be the only work on it"), output_lock(other, "work on it"):
                pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]  # folders that stay empty are removed again


def test_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(PathError, match=r"^expected a path, found a link that leads to itself at .*a; remove it$"):
        local_path(tmp_path / "a")


def test_names_too_long_for_a_lock_are_refused_before_the_work(tmp_path: Path) -> None:
    fits = tmp_path / ("é" * 115 + ".csv")
    with output_lock(fits, "test"):
        write_atomically(replaceable_file(fits, b"", "a report"), "content")
        write_atomically(fits.with_name(f".{fits.name}.finished"), "content")
    for path in (tmp_path / ("é" * 116 + ".csv"), tmp_path / ("x" * 255)):
        message = "^expected a name of at most 235 bytes for .*, found 2[35][56] bytes: .*; choose a shorter one$"
        with pytest.raises(PathError, match=message), output_lock(path, "test"):
            pytest.fail("locked")
        with pytest.raises(PathError, match=message):
            replaceable_file(path, b"", "a report")
