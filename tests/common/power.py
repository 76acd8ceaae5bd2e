"""A model of power cuts: what is on the disk after a program has been cut off at any of its system calls.

`PowerRecorder` wraps the functions of `os` that change folders or sync. After each call it notes two states of a
folder, between which a real disk may be:

-   *strict*: only what was synced. A file has the bytes of its last fsync, a folder the names of its own last fsync.
-   *names*: all names survive, the bytes of files only if they were synced; other files are empty. So do journalling
    file systems: a rename reaches the disk before the bytes do.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

Tree: TypeAlias = dict[str, Any]  # name -> bytes of a file, or Tree of a folder

# Functions after which the state of the disk may differ.
CHANGES = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "remove")


class PowerRecorder:
    """States of the folder `root` after each change, during `recording`; `root` itself is on the disk already.

    calls   what was called, for messages
    states  (strict, names) after each of the calls
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[str] = []
        self.states: list[tuple[Tree, Tree]] = []
        self._bytes: dict[int, bytes] = {}  # of each synced file, by inode
        self._names: dict[int, dict[str, int]] = {}  # of each synced folder: name -> inode, 0 for a folder's
        self._held: list[int] = []  # descriptors, so that no inode is used again
        self._lock = threading.RLock()

    @contextmanager
    def recording(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Record while the block runs."""
        self._sync(self.root)
        with patch.context() as context:
            for name in CHANGES:
                context.setattr(os, name, self._wrapped(name, getattr(os, name)))
            yield
        for descriptor in self._held:
            os.close(descriptor)

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                path = str(Path(f"/proc/self/fd/{arguments[0]}").readlink()) if name == "fsync" else str(arguments[0])
                result = None if name == "fsync" else function(*arguments, **options)  # the real one takes long
                if name == "fsync":
                    self._sync(Path(path))
                if self.root in Path(path).absolute().parents or Path(path) == self.root:
                    self.calls.append(f"{name} {Path(path).absolute().relative_to(self.root)}")
                    self.states.append((self._strict(self._inode(self.root)), self._named(self.root)))
                return result

        return call

    def _inode(self, path: Path) -> int:
        """The inode of a file or folder; no other gets the same number while the recorder lives."""
        status = path.lstat()
        if status.st_ino not in self._bytes and status.st_ino not in self._names:
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                self._held.append(os.open(path, os.O_RDONLY))
            if stat.S_ISDIR(status.st_mode):
                self._names[status.st_ino] = {}
            else:
                self._bytes[status.st_ino] = b""
        return status.st_ino

    def _sync(self, path: Path) -> None:
        inode = self._inode(path)
        if path.is_dir():
            self._names[inode] = {child.name: self._inode(child) for child in path.iterdir()}
        else:
            self._bytes[inode] = path.read_bytes()

    def _strict(self, inode: int) -> Tree:
        names = self._names[inode]
        return {name: self._strict(at) if at in self._names else self._bytes[at] for name, at in names.items()}

    def _named(self, folder: Path) -> Tree:
        return {
            path.name: self._named(path) if path.is_dir() else self._bytes[self._inode(path)]
            for path in folder.iterdir()
        }


def restore(tree: Tree, folder: Path) -> None:
    """Write a state to an empty folder."""
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).mkdir()
            restore(content, folder / name)
