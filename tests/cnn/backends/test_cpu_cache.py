"""Compiled kernels on disk: a folder for each version of the source, one that can be written to."""

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


def folder_in_use() -> Path:
    with cache.kernels_of_this_version():
        return Path(numba.config.CACHE_DIR)


def test_each_version_of_the_source_has_its_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = numba.config.CACHE_DIR
    first = folder_in_use()
    assert first.parent == root and first.is_dir()
    assert before == numba.config.CACHE_DIR, "other libraries' kernels go where they went"
    assert folder_in_use() == first
    monkeypatch.setattr(cache, "_digest", lambda: "changed")
    assert folder_in_use() == root / "kernels-changed"


def test_the_digest_covers_every_file() -> None:
    names = {path.name for path in Path(cache.__file__).parent.glob("*.py")}
    assert {"simd.py", "gemm.py", "winograd.py", "direct.py"} <= names
    assert len(cache._digest()) == 16


def test_versions_long_unused_are_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, recent = root / "kernels-old", root / "kernels-recent"
    for folder in (old, recent):
        folder.mkdir(parents=True)
    long_ago = time.time() - 100 * 86400
    os.utime(old, (long_ago, long_ago))
    folder_in_use()
    assert not old.exists() and recent.exists()


def test_a_place_that_cannot_be_written_to_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "elsewhere"))
    assert folder_in_use().is_relative_to(tmp_path / "elsewhere")
