"""Checks of the paths that a user gives, before any work is done: they are local, and no other file is replaced."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from logpose.common.errors import PathError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # Path makes one slash of two; a drive of Windows has one letter
_OPEN_FILE = re.compile("/proc/|/dev/(fd/|std(in|out|err)$)")  # links to files that are open
_HEAD = 2048  # bytes in which a file's mark is
_MAX_NAME = 235  # bytes: file systems allow 255, and temporary files and locks beside an output have longer names


def local_path(path: Path) -> Path:
    """Return a path that a user gave.

    Raises PathError for a URL, for a `~` that no shell has expanded, and for a link that leads to itself.
    """
    found = _URL.match(str(path))
    if found and not Path(found[1] + ":").exists():
        raise PathError(
            f"expected a path on this machine, found the URL {found[1]}://{str(path)[found.end():].lstrip('/')}; copy"
            " the files here, or mount the storage as a folder"
        )
    if path.parts[:1] == ("~",) and not Path("~").exists():
        raise PathError(f"expected a path, found ~, which the shell did not expand, in {path}; write your home folder")
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PathError(f"expected a path, found a link that leads to itself at {path}; remove it") from None
    return path


def output_file(path: Path) -> Path:
    """Return the plain file to write for an output at `path`: where that is a link, the file that it points to.

    Raises PathError where anything but a plain file is there already, such as a folder, a device or a pipe.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    is_open = path.is_symlink() and _OPEN_FILE.match(str(path.absolute()))
    if not stat.S_ISREG(mode) or is_open:
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        found = kinds.get(stat.S_IFMT(mode), "a device")
        raise PathError(f"expected a file to write, found {found} at {path}; give the name of a file")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_name(path: Path) -> None:
    """Raise PathError where the name of an output is so long that its lock, for example, could not be made."""
    if (length := len(os.fsencode(path.name))) > _MAX_NAME:
        raise PathError(
            f"expected a name of at most {_MAX_NAME} bytes for an output, found {length} bytes: {path}; choose a"
            " shorter one"
        )


def replaceable_file(path: Path, mark: bytes, what: str) -> Path:
    """Return `output_file`, to which a job writes `what`, which has `mark` near its beginning.

    Raises PathError where another file is there: only earlier results of the job are replaced, and empty files; and for
    a name that is too long.
    """
    check_name(path)
    file = output_file(path)
    if file.exists():
        with file.open("rb") as content:
            head = content.read(_HEAD)
        if head and mark not in head:
            raise PathError(f"{path} exists and is not {what} of logpose; choose another name, or remove it")
    return file
