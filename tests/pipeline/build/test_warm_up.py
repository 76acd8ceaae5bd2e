"""Kernels are loaded before a build's first image: compiling them is said, and counts in no rate."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import rounds
from pipeline.build.build import build_dataset
from pipeline.build.options import BuildOptions
from tests.pipeline.conftest import SIZE

Images = Callable[..., Path]
Calls = list[tuple[int, int, str, int]]


def compiles(seconds: float) -> Callable[..., None]:
    """What to put in place of `load_kernels`: compiles for so long."""

    def load(size: tuple[int, int], fit: str, prints: bool, on_compile: Callable[[], None]) -> None:
        if seconds:
            on_compile()
        time.sleep(seconds)

    return load


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_compiling_is_reported_before_the_first_image(
    image_folder: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(rounds, "load_kernels", compiles(seconds))
    calls: Calls = []
    build_dataset(image_folder(a=6, b=4), tmp_path / "ds", BuildOptions(size=SIZE), lambda *call: calls.append(call))
    kinds = [what for _, _, what, _ in calls]
    compiling = kinds.count("kernels")
    assert (compiling > 0) == (seconds > 0) and kinds[:compiling] == ["kernels"] * compiling
    assert calls[-1][0] == calls[-1][1] > 0


def test_ctrl_c_is_answered_while_kernels_are_compiled(
    image_folder: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "load_kernels", compiles(5.0))

    def interrupt(*call: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(image_folder(a=6, b=4), tmp_path / "ds", BuildOptions(size=SIZE), interrupt)


def test_kernels_that_cannot_be_loaded_are_left_to_the_tasks(
    image_folder: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(rounds, "load_kernels", fails)
    assert build_dataset(image_folder(a=6, b=4), tmp_path / "ds", BuildOptions(size=SIZE)).rows["train"] > 0


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_build_needs_no_other_kernels(image_folder: Images, tmp_path: Path, fit: str) -> None:
    """In a process of its own, since others have compiled any."""
    script = """
import sys
from pathlib import Path
from pipeline.build.build import build_dataset
from pipeline.build.options import BuildOptions
from pipeline.build.warm_up import load_kernels
from pipeline.images import pixel_sums

def versions():
    return {name: set(getattr(pixel_sums, name).signatures) for name in ("add_colours", "project_greys")}

load_kernels((20, 24), sys.argv[3], True, lambda: None)
before = versions()
build_dataset(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions(size=(20, 24), fit=sys.argv[3]))
assert before == versions() and all(before.values()), (before, versions())
"""
    root = image_folder(a=6, b=4)
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), str(tmp_path / "ds"), fit], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert not done.returncode, done.stderr
