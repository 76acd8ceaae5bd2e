"""The cache of compiled kernels: a writable folder for each version of the source."""

import os
import time
from pathlib import Path

import numba
import pytest

from cnn.backends.cpu import cache


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return tmp_path / "logpose"


def cache_folder() -> Path:
    with cache.versioned_kernel_cache():
        return Path(numba.config.CACHE_DIR)


def test_each_source_version_has_its_own_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = numba.config.CACHE_DIR
    first = cache_folder()
    assert first.parent == root and first.is_dir()
    assert before == numba.config.CACHE_DIR, "other libraries' cache folder must not change"
    assert cache_folder() == first
    monkeypatch.setattr(cache, "_digest", lambda: "changed")
    assert cache_folder() == root / "kernels-changed"


def test_digest_covers_all_files() -> None:
    names = {path.name for path in Path(cache.__file__).parent.glob("*.py")}
    assert {"simd.py", "gemm.py", "winograd.py", "direct.py"} <= names
    assert len(cache._digest()) == 16


def test_unused_versions_are_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, recent = root / "kernels-old", root / "kernels-recent"
    for folder in (old, recent):
        folder.mkdir(parents=True)
    long_ago = time.time() - 100 * 86400
    os.utime(old, (long_ago, long_ago))
    cache_folder()
    assert not old.exists() and recent.exists()


def test_unwritable_folder_falls_back_to_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "elsewhere"))
    assert cache_folder().is_relative_to(tmp_path / "elsewhere")
