"""The shim that makes one call of the system fail: compiled here, loaded with LD_PRELOAD, driven through ctypes."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")
SHORT, DONE = -1, -2  # instead of an error: half of the bytes; the call takes place, and an error is reported

# The errors to try at each kind of call, the likeliest first. Rights are no fault of the system: they are left out
# where they would be a fact about an image.
ERRORS: dict[str, tuple[int, ...]] = {
    "open": (errno.EMFILE, errno.EIO, errno.ESTALE),
    "create": (errno.ENOSPC, errno.EMFILE, errno.EACCES),
    "read": (errno.EIO, errno.ESTALE),
    "pread": (errno.EIO, errno.ESTALE),
    "write": (errno.ENOSPC, errno.EIO, SHORT),
    "pwrite": (errno.ENOSPC, errno.EIO, SHORT),
    "fsync": (errno.EIO, errno.EDQUOT),
    "truncate": (errno.ENOSPC, errno.EIO),
    "close": (errno.EIO, errno.EDQUOT),
    "rename": (errno.EIO, errno.ENOSPC, DONE),
    "unlink": (errno.EIO, errno.EACCES, DONE),
    "rmdir": (errno.EIO, errno.EACCES),
    "mkdir": (errno.ENOSPC, errno.EDQUOT, DONE),
    "link": (errno.EIO,),
    "stat": (errno.EIO, errno.ESTALE),
    "fstat": (errno.EIO, errno.ESTALE),
    "opendir": (errno.EMFILE, errno.EIO),
    "readdir": (errno.EIO, errno.ESTALE),
    "mmap": (errno.ENOMEM, errno.EIO),
    "lock": (errno.EIO, errno.ENOLCK),
    "dup": (errno.EMFILE,),
    "chmod": (errno.EACCES,),
    "copy": (errno.ENOSPC, errno.EIO),
    "thread": (errno.EAGAIN,),
}


class Call(NamedTuple):
    """A call of the system: the nth of its kind, counted from 1, at a path relative to the watched folder."""

    kind: str
    path: str
    nth: int


def error_name(error: int) -> str:
    return {SHORT: "short", DONE: "done"}.get(error) or errno.errorcode[error]


def why_unusable() -> str:
    """Why there is no shim on this machine; empty where there is."""
    if not sys.platform.startswith("linux"):
        return "calls of the system are made to fail on Linux only"
    return "" if _compiler() else "no C compiler"


def compile_shim(folder: Path) -> Path:
    """Compile the shim into the folder, for LD_PRELOAD."""
    library = folder / "shim.so"
    command = [str(_compiler()), "-shared", "-fPIC", "-O1", "-w", "-o", library, SOURCE, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


class Shim:
    """The shim of this process, which was started with it; calls below `folder` are watched."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._library.shim_hits.restype = ctypes.c_long
        self._library.shim_folder(os.fsencode(folder))

    def arm(self, call: Call, error: int, *, stays: bool = False) -> None:
        """Let this call fail, and with `stays` all later ones of its kind and path."""
        kind, path = call.kind.encode(), os.fsencode(call.path)
        self._library.shim_arm(kind, path, ctypes.c_long(call.nth), error, int(stays))

    @property
    def hits(self) -> int:
        """How many calls have failed."""
        return int(self._library.shim_hits())

    def calls_of(self, run: Callable[[], None]) -> list[Call]:
        """The calls that `run` makes below the folder, in their order."""
        with tempfile.TemporaryFile() as file:
            self._library.shim_trace(file.fileno())
            run()
            self._library.shim_trace(-1)
            file.seek(0)
            lines = [os.fsdecode(line).split("\t") for line in file.read().splitlines()]
        counts: Counter[tuple[str, str]] = Counter()
        calls = []
        for kind, path in lines:
            counts[kind, path] += 1
            calls.append(Call(kind, path, counts[kind, path]))
        return calls
