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
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import event
from numba.core.caching import FunctionCache, IndexDataCacheFile

from logpose.common import kernel_compiler
from logpose.common.cache_folder import private_folder
from logpose.common.kernel_compiler import INNER_OPTIONS, KERNEL_OPTIONS
from logpose.common.notices import note_once

_CHECKSUM_BYTES = 8
_UNUSED_DAYS = 30  # after which another version's folder is removed
NOT_CACHED = "compiled kernels cannot be kept ({}), and each start takes ten seconds longer: set NUMBA_CACHE_DIR to a"
NOT_CACHED += " folder of your own that can be written"

# Compiles a function that only kernels call.
inner = numba.njit(error_model="numpy", **INNER_OPTIONS)
# An option for what makes no arrays: counting references to them would take a seventh of the time to compile.
NO_ARRAYS: dict[str, Any] = {"_nrt": False}
# Compiles a function that makes no arrays and that only kernels call.
inner_without_arrays = numba.njit(error_model="numpy", **NO_ARRAYS, **INNER_OPTIONS)


def cached_njit(
    signature: str | None = None, variant: str = "", **options: Any
) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit(signature, cache=True, **options)` with a cache that is private, and that may fail or be missing.

    `variant` tells apart kernels that are compiled from one function, of which Numba's cache would keep one.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**KERNEL_OPTIONS, **options)(function)
        if hasattr(dispatcher, "enable_caching"):  # a plain function, with NUMBA_DISABLE_JIT
            if (cached := _cache_of(function, variant)) is not None:
                dispatcher._cache = cached
            if signature is not None:
                dispatcher.compile(signature)
                dispatcher.disable_compile()
        return dispatcher

    return decorate


class _CheckedFiles(IndexDataCacheFile):  # type: ignore[misc]  # Numba has no types
    """The files of a kernel, each with a length and a checksum at its end: machine code with flipped bits would run."""

    def _dump(self, values: Any) -> bytes:
        content: bytes = super()._dump(values)
        length = len(content).to_bytes(_CHECKSUM_BYTES, "little")
        return content + length + _checksum(content)  # Numba ignores what follows a pickle

    def _load_index(self) -> Any:
        with suppress(FileNotFoundError):
            _check(Path(self._index_path))  # after Numba's version, which Numba checks
        return super()._load_index()

    def _load_data(self, name: str) -> Any:
        _check(Path(self._data_path(name)))
        return super()._load_data(name)


def _check(path: Path) -> None:
    """Raise ValueError where the file does not match the checksum at its end."""
    content = path.read_bytes()
    end = len(content) - 2 * _CHECKSUM_BYTES
    begin = end - int.from_bytes(content[end : end + _CHECKSUM_BYTES], "little")
    if min(begin, end) < 0 or content[-_CHECKSUM_BYTES:] != _checksum(content[begin:end]):
        raise ValueError(f"{path} is damaged")


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest()


class _NotCachedError(Exception):
    """A kernel would have to be compiled, and was only to be loaded."""


_only_load = threading.local()  # `on`: this thread compiles nothing


def cache_folder_of(kernel: Any) -> Path | None:
    """Return the folder that the compiled `kernel` is kept in, None if it cannot be kept."""
    kept = getattr(kernel, "_cache", None)
    return Path(kept.cache_path) if isinstance(kept, _Cache) else None


def is_ready(kernel: Any, argument_types: tuple[Any, ...]) -> bool:
    """Whether a kernel need not be compiled for arguments of these types; loads it, if it is in the cache."""
    if argument_types in kernel.overloads:
        return True
    if cache_folder_of(kernel) is None:
        return False
    _only_load.on = True
    try:
        kernel.compile(argument_types)
    except _NotCachedError:
        return False
    finally:
        _only_load.on = False
    return True


@contextmanager
def watched_compiling(on_compile: Callable[[], None]) -> Iterator[None]:
    """Call `on_compile` whenever a kernel, or a function that it calls, has to be compiled."""

    class Watch(event.Listener):  # type: ignore[misc]  # Numba has no types
        def on_start(self, event: Any) -> None:
            on_compile()

        def on_end(self, event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Watch()):
        yield


class _Cache(FunctionCache):  # type: ignore[misc]  # Numba has no types
    """Numba's cache, without its errors: a kernel that cannot be loaded or kept is compiled.

    The folder stands for the source, so that all installations of one version share it.
    """

    _cache_file: Any

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        super().__init__(function)
        self._cache_path = str(folder)
        self._cache_file = _CheckedFiles(self._cache_path, self._impl.filename_base, source_stamp=None)

    def load_overload(self, signature: Any, target: Any) -> Any:
        found = None
        with suppress(Exception):  # damaged: a power cut may leave an empty file
            found = super().load_overload(signature, target)
        if found is None and getattr(_only_load, "on", False):
            raise _NotCachedError
        return found

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
        return _Cache(function, folder)
    except (OSError, RuntimeError):  # the folder has been deleted or filled up since
        return None
    finally:
        numba.config.CACHE_DIR = before


@cache
def _version_folder(source: Path, variant: str) -> Path | None:
    folder = private_folder(f"kernels-{_digest(source)}{variant}")
    if folder is not None:
        with suppress(OSError):
            os.utime(folder)
            _remove_unused(folder.parent)
    return folder


def _digest(source: Path) -> str:
    """A digest of all source files in the folder `source`, and of those that say how kernels are compiled."""
    digest = hashlib.blake2b(digest_size=8)
    compiler = (Path(__file__), Path(kernel_compiler.__file__))
    for path in (*sorted(source.glob("*.py")), *compiler):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _remove_unused(root: Path) -> None:
    for folder in root.glob("kernels-*"):
        if time.time() - folder.stat().st_mtime > _UNUSED_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)
