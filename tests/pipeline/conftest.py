"""Folders of small generated images, and datasets built from them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.build.build import BuildReport, build_dataset
from pipeline.build.options import BuildOptions
from pipeline.dataset.store import Dataset, Split

SIZE = (8, 12)


@contextmanager
def failing_after(seconds: int = 120) -> Iterator[None]:
    """Fail a test that hangs, by an error that no code takes for one of the network, as a TimeoutError is."""

    def fail(*_: object) -> None:
        pytest.fail(f"the test has not finished in {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def colour_of(name: str) -> tuple[int, int, int]:
    """A plain colour, different for each image number."""
    number = int(name)
    return number % 7 * 40, number // 7 % 7 * 40, 20 + number // 49 * 60


def draw_plain(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), colour, dtype=np.uint8)).save(path)


def check_rows(split: Split, class_names: tuple[str, ...]) -> None:
    """Check that each row has the colour and the class of the file that its path names."""
    images = split.read(0, split.rows)  # (N, H, W, 3)
    for image, label, path in zip(images, split.labels, split.paths, strict=True):
        folder, name = path.split("/")[-2:]
        assert class_names[label] == folder
        assert (image == colour_of(name.split(".")[0])).all(), f"{path} shows another image"


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """image_folder(a=5, b=3) -> a folder with a/0000.png … ; each image has its own colour."""

    def make(root: str = "images", **counts: int) -> Path:
        number = 0
        for name, count in counts.items():
            for _ in range(count):
                draw_plain(tmp_path / root / name / f"{number:04d}.png", colour_of(str(number)))
                number += 1
        return tmp_path / root

    return make


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., BuildReport]:
    """build(root, val=0.2) -> the BuildReport of a dataset at tmp_path/'images.zarr'."""

    def run(root: Path, dest: Path | None = None, **options: object) -> BuildReport:
        chosen = BuildOptions(**({"size": SIZE, "workers": 2} | options))  # type: ignore[arg-type]
        return build_dataset(root, dest or tmp_path / "images.zarr", chosen)

    return run


def set_small_chunks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("pipeline.dataset.schema.CHUNK_BYTES", 4 * SIZE[0] * SIZE[1] * 3)
    patch.setattr("pipeline.dataset.schema.SHARD_CHUNKS", 2)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 rows and shards of 8: a few images make several of both."""
    set_small_chunks(monkeypatch)


def build_small(factory: pytest.TempPathFactory, rows: int, val: float) -> Dataset:
    folder = factory.mktemp("built")
    for number in range(rows):
        draw_plain(folder / "images" / "ab"[number % 2] / f"{number}.png", colour_of(str(number)))
    with pytest.MonkeyPatch.context() as patch:
        set_small_chunks(patch)
        build_dataset(folder / "images", folder / "images.zarr", BuildOptions(SIZE, val=val))
    return Dataset.open(folder / "images.zarr")


@pytest.fixture(scope="session")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """28 training rows in 4 shards of 2 chunks, the last half empty; 12 validation rows. Read only."""
    return build_small(tmp_path_factory, 40, 0.3)


@pytest.fixture(scope="session")
def seventy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """70 training rows in 18 chunks of 4. Read only."""
    return build_small(tmp_path_factory, 70, 0)
