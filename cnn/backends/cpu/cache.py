"""Cache of compiled kernels: one folder for each version of this package's source.

Numba invalidates a cached kernel when the kernel's own file changes, but not when a function it calls from another file
does; a folder named by the digest of all files covers both. The folders are in `NUMBA_CACHE_DIR` if set, else in the
user's cache folder.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numba

_UNUSED_DAYS = 30  # after which another version's folder is removed


@contextmanager
def versioned_kernel_cache() -> Iterator[None]:
    """Cache the kernels declared inside the block in this version's folder.

    Falls back to the system's temporary folder where the cache folder is not writable.
    """
    before, name = numba.config.CACHE_DIR, f"kernels-{_digest()}"
    for root in (_root(), Path(tempfile.gettempdir()) / f"logpose-{os.getuid() if hasattr(os, 'getuid') else 0}"):
        with suppress(OSError):  # not writable: try the next
            _prepare(root / name)
            numba.config.CACHE_DIR = str(root / name)
            break
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _prepare(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unused(folder.parent)
    os.utime(folder)


def _digest() -> str:
    """A digest of all source files of this package."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _root() -> Path:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen) / "logpose"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "logpose"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "logpose"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "logpose"


def _remove_unused(root: Path) -> None:
    for folder in root.glob("kernels-*"):
        if time.time() - folder.stat().st_mtime > _UNUSED_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)
