"""The folder of compiled kernels: one that no other user can write, since what lies in it is run.

The user's cache folder, or else a folder in the system's temporary one, which other users share. Neither is trusted for
its name alone: see `private_folder`.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_HAS_OWNERS = hasattr(os, "getuid")  # not on Windows, whose temporary folder is the user's own


def cache_roots() -> Iterator[Path]:
    """Yield the folders that a cache may be in, the best first; none of them has to exist."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen) / "logpose"
    with suppress(RuntimeError):  # no home folder is known
        if sys.platform == "win32":
            yield Path(os.environ.get("LOCALAPPDATA", Path.home())) / "logpose"
        elif sys.platform == "darwin":
            yield Path.home() / "Library" / "Caches" / "logpose"
        else:
            yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "logpose"
    with suppress(OSError):  # no temporary folder can be written
        yield Path(tempfile.gettempdir()) / f"logpose-{os.getuid() if _HAS_OWNERS else 0}"


def private_folder(name: str) -> Path | None:
    """Return the folder `name` in the first cache folder that is ours alone and can be written; None if there is none.

    Ours alone: a folder and no link, owned by this user, which others can neither write nor replace.
    """
    for root in cache_roots():
        with suppress(OSError):
            root.parent.mkdir(parents=True, exist_ok=True)
            if _can_be_replaced(root):
                continue
            if not _is_ours(root, tighten=True) or not _is_ours(root / name):
                continue
            tempfile.TemporaryFile(dir=root / name).close()  # can it be written?
            return root / name
    return None


def share_folder(variable: str, usual: str, name: str) -> bool:
    """Have a library keep its cache in `private_folder(name)`, unless its usual one is the user's and writable.

    `variable` is the environment variable by which the library takes another folder; a user's own choice stays.
    Returns whether there is a folder.
    """
    if os.environ.get(variable):
        return True
    with suppress(OSError, RuntimeError):
        folder = Path(usual).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        status = folder.stat()
        owned = not _HAS_OWNERS or (status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWOTH)
        if owned and os.access(folder, os.W_OK):
            return True
    found = private_folder(name)
    if found is not None:
        os.environ[variable] = str(found)
    return found is not None


def _is_ours(folder: Path, *, tighten: bool = False) -> bool:
    """Whether this is a folder of this user with mode 0700; make it if it is missing.

    With `tighten`, set the mode of a folder that is ours. Not for one that files are loaded from: while others could
    write it, they may have put some there.
    """
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or (_HAS_OWNERS and status.st_uid != os.geteuid()):
        return False
    if _HAS_OWNERS and status.st_mode & 0o077 and tighten:
        folder.chmod(0o700)
        status = folder.lstat()
    return not _HAS_OWNERS or not status.st_mode & 0o077


def _can_be_replaced(folder: Path) -> bool:
    """Whether others may put another folder in the place of this one, or of one above.

    They may where they own the folder that it is in, or where that is writable by all, and not sticky as /tmp is.
    """
    if not _HAS_OWNERS:
        return False
    trusted = {os.geteuid(), 0, Path("/").stat().st_uid}  # in a container, root may have another number
    above = [parent.stat() for parent in folder.parent.resolve().joinpath("x").parents]
    open_to_all = any(each.st_mode & stat.S_IWOTH and not each.st_mode & stat.S_ISVTX for each in above)
    return open_to_all or any(each.st_uid not in trusted for each in above)
