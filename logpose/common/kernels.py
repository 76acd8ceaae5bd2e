"""Compiled kernels, cached on disk: one folder for each version of the source.

Numba invalidates a cached kernel when the kernel's own file changes, but not when a function it calls from another file
does; a folder named by the digest of all files beside it covers both. A cached kernel is a pickle of machine code, so
the folder must be private (`logpose.common.cache_folder`). Numba's own choice would be a folder beside the source, or
one in the user's cache, and an error where neither can be written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

from logpose.common.cache_folder import private_folder
from logpose.common.notices import note_once

_UNUSED_DAYS = 30  # after which another version's folder is removed
NOT_CACHED = "compiled kernels cannot be kept ({}), and each start takes half a minute longer: set NUMBA_CACHE_DIR to a"
NOT_CACHED += " folder of your own that can be written"


def cached_njit(
    signature: str | None = None, variant: str = "", **options: Any
) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit(signature, cache=True, **options)` with a cache that is private, and that may fail or be missing.

    `variant` tells apart kernels that are compiled from one function, of which Numba's cache would keep one.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        if hasattr(dispatcher, "enable_caching"):  # a plain function, with NUMBA_DISABLE_JIT
            if (cached := _cache_of(function, variant)) is not None:
                dispatcher._cache = cached
            if signature is not None:
                dispatcher.compile(signature)
                dispatcher.disable_compile()
        return dispatcher

    return decorate


class _Cache(FunctionCache):  # type: ignore[misc]  # Numba has no types
    """Numba's cache, without its errors: a kernel that cannot be loaded or kept is compiled."""

    def load_overload(self, signature: Any, target: Any) -> Any:
        with suppress(Exception):  # damaged: a power cut may leave an empty file
            return super().load_overload(signature, target)
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        for attempt in range(2):
            try:
                return super().save_overload(signature, compiled)
            except Exception as error:
                with suppress(Exception):
                    self.flush()  # a damaged index keeps kernels from being added to it
                if attempt:
                    note_once("no cache", NOT_CACHED.format(getattr(error, "strerror", None) or type(error).__name__))
        return None


def _cache_of(function: Callable[..., Any], variant: str) -> _Cache | None:
    """The cache of a kernel, in this version's folder; None without one."""
    folder = _version_folder(Path(function.__code__.co_filename).parent, variant)
    if folder is None:
        note_once("no cache", NOT_CACHED.format("no folder is both private and writable"))
        return None
    before = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = str(folder)
        found = _Cache(function)
    except (OSError, RuntimeError):  # the folder has been deleted or filled up since
        return None
    finally:
        numba.config.CACHE_DIR = before
    return found if Path(found.cache_path).is_relative_to(folder) else None


@cache
def _version_folder(source: Path, variant: str) -> Path | None:
    folder = private_folder(f"kernels-{_digest(source)}{variant}")
    if folder is not None:
        with suppress(OSError):
            os.utime(folder)
            _remove_unused(folder.parent)
    return folder


def _digest(source: Path) -> str:
    """A digest of all source files in the folder `source`."""
    digest = hashlib.blake2b(digest_size=8)
    for path in (*sorted(source.glob("*.py")), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _remove_unused(root: Path) -> None:
    for folder in root.glob("kernels-*"):
        if time.time() - folder.stat().st_mtime > _UNUSED_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)
