"""Inputs that must not keep a job busy, or waiting, for ever: pipes in place of files, link lattices, hostile sizes."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.errors import NO_THREADS
from pipeline.build.build import build_dataset
from pipeline.build.options import BuildOptions
from pipeline.dataset.store import Dataset
from pipeline.dataset.verify import verify_dataset
from pipeline.errors import DatasetError, ListingError
from pipeline.scan.class_folders import list_images
from pipeline.scan.walk import walk_files
from tests.pipeline.conftest import colour_of, draw_plain, failing_after


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    with failing_after(120):
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hangs") / "images"
    for number in range(12):
        draw_plain(root / "ab"[number % 2] / f"{number}.png", colour_of(str(number)))
    return root


@pytest.fixture(scope="module")
def built(images: Path) -> Path:
    build_dataset(images, images.parent / "built.zarr", BuildOptions(size=(8, 12), val=0.3, workers=1))
    return images.parent / "built.zarr"


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A dataset that may be damaged."""
    return Path(shutil.copytree(built, tmp_path / "data.zarr"))


# Pipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "zarr.json", "train/zarr.json", "train/images/zarr.json", "train/labels/zarr.json", "train/paths/zarr.json",
        "train/images/c/0/0/0/0", "train/labels/c/0", "train/paths/c/0", "failures.csv", "duplicates.csv",
    ],
)  # fmt: skip
def test_pipe_in_a_dataset_is_damage(dataset: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / name).unlink()
    os.mkfifo(dataset / name)
    assert main(["verify", str(dataset)]) in (1, 2)
    printed = "".join(capsys.readouterr())
    assert name.split("/")[0] in printed and "Errno" not in printed and "bug" not in printed
    # The jobs that read a part only: they end, with or without an error.
    main(["info", str(dataset), "--no-sheet"])
    if name.startswith("train/"):
        with pytest.raises(DatasetError) if name != "train/zarr.json" else failing_after():
            data = Dataset.open(dataset)
            data.train[:], data.train.labels, data.train.paths


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json", "config.toml"])
def test_pipe_in_a_run_folder_ends_in_an_error(tmp_path: Path, name: str) -> None:
    from jobs.errors import explain
    from jobs.training.run_folder import RunFolder

    os.mkfifo(tmp_path / name)
    folder = RunFolder(tmp_path)
    read = {"metrics.csv": folder.read_history, "summary.json": folder.read_summary}
    if name in read:
        with pytest.raises(OSError) as caught:
            read[name]()
        message, code = explain(caught.value)
        assert message.startswith("expected a file, found a pipe") and str(tmp_path / name) in message and code == 2


# Trees ------------------------------------------------------------------------------------------------


def lattice(root: Path, levels: int) -> None:
    """`levels` folders, each but the last with two links to the next: 2**(levels - 1) paths to the last one."""
    for level in range(levels):
        (root / f"{level:02}").mkdir(parents=True)
    for level in range(levels - 1):
        for name in "ab":
            (root / f"{level:02}" / name).symlink_to(root / f"{level + 1:02}")
    (root / f"{levels - 1:02}" / "image.png").write_bytes(b"an image")


def test_link_lattice_is_refused(tmp_path: Path) -> None:
    lattice(tmp_path / "images" / "cats", 40)  # 10**12 paths
    (tmp_path / "images" / "dogs").mkdir()
    with pytest.raises(ListingError, match=r"links to the same folders again and again in .*remove some, such as"):
        list(walk_files(tmp_path / "images", tmp_path))
    with pytest.raises(ListingError, match="again and again"):
        list_images(tmp_path / "images")


def test_folder_that_is_linked_a_few_times_is_listed_each_time(tmp_path: Path) -> None:
    lattice(tmp_path / "images", 5)
    found = [file.name for file in walk_files(tmp_path / "images", tmp_path)]
    assert len(found) == 1 + 2 + 4 + 8 + 16


def test_deep_folders_are_listed(tmp_path: Path) -> None:
    here = Path.cwd()
    (tmp_path / "images").mkdir()
    try:
        os.chdir(tmp_path / "images")
        for _ in range(1100):
            Path("n").mkdir()
            os.chdir("n")
        Path("image.png").write_bytes(b"an image")
    finally:
        os.chdir(here)
    [file] = walk_files(tmp_path / "images", tmp_path)
    assert file.name == "n/" * 1100 + "image.png"
    # Too deep for rmtree, by which pytest removes the folders of earlier runs.
    (tmp_path / "images" / file.name).unlink()
    for level in range(1100, 0, -1):
        (tmp_path / "images" / ("n/" * level)).rmdir()


# Recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" + ".".join("a" * 100_000) + "]\nb = 1", "at most 64 KiB, with keys of two parts"),
        ("[train]\n" + ".".join("a" * 20_000) + " = 1", "at most 64 KiB, with keys of two parts"),
        ("[train]\n" + " . ".join(["'a'"] * 1000) + " = 1", "at most 64 KiB, with keys of two parts"),
        ("[train]\nepochs = " + "[" * 30_000, "brackets nested too deeply"),
        ("#" * 70_000, "at most 64 KiB"),
    ],
)
def test_hostile_recipe_is_refused(
    built: Path, tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hostile.toml").write_text(text)
    assert main(["train", str(built), str(tmp_path / "run"), "--config", str(tmp_path / "hostile.toml")]) == 2
    assert message in capsys.readouterr().err


def test_hostile_value_is_refused_in_a_short_line(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(built), str(tmp_path / "run"), "--set", "optimizer.lr=" + "[" * 30_000]) == 2
    assert len(capsys.readouterr().err) < 1000


# Hostile metadata -------------------------------------------------------------------------------------


def change(file: Path, *path: Any, to: Any) -> None:
    """Replace a value deep in a JSON file."""
    node = json.loads(file.read_text())
    inner = node
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    file.write_text(json.dumps(node))


HUGE = 10**12
IMAGES = "train/images/zarr.json"
CHUNK = ("codecs", 0, "configuration", "chunk_shape")
SHARD = ("chunk_grid", "configuration", "chunk_shape")
HOSTILE: dict[str, list[tuple[str, tuple[Any, ...], Any]]] = {
    "rows": [(IMAGES, ("shape", 0), HUGE * HUGE)],
    "rows of a shard": [(IMAGES, (*SHARD, 0), HUGE)],
    "rows of a chunk and a shard": [(IMAGES, (*CHUNK, 0), HUGE), (IMAGES, (*SHARD, 0), HUGE)],
    "no rows in a chunk": [(IMAGES, (*CHUNK, 0), 0)],
    "size": [("zarr.json", ("attributes", "size"), [HUGE, HUGE])],
    "no size": [("zarr.json", ("attributes", "size"), [0, 12])],
    "labels": [("train/labels/zarr.json", ("shape", 0), HUGE)],
    "chunks of labels": [("train/labels/zarr.json", (*SHARD, 0), HUGE)],
    "chunks of paths": [("train/paths/zarr.json", (*SHARD, 0), HUGE)],
    "codecs of labels": [
        ("train/labels/zarr.json", ("codecs",), [{"name": "bytes"}, {"name": "zstd"}, {"name": "crc32c"}])
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_is_refused(dataset: Path, name: str) -> None:
    for file, path, value in HOSTILE[name]:
        change(dataset / file, *path, to=value)
    with pytest.raises(DatasetError) as caught:
        verify_dataset(dataset)
    assert "Traceback" not in str(caught.value)


def test_number_of_strings_is_checked_before_there_is_room_for_them(dataset: Path) -> None:
    file = dataset / "train" / "paths" / "c" / "0"
    content = bytearray(file.read_bytes())
    content[:4] = (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(DatasetError, match="another number of strings"):
        _ = Dataset.open(dataset).train.paths


def test_length_in_the_index_is_checked_before_there_is_room_for_it(dataset: Path) -> None:
    from pipeline.dataset.shard_format import _checksum

    file = dataset / "train" / "images" / "c" / "0" / "0" / "0" / "0"
    content = file.read_bytes()
    index = bytearray(content[-20:-4])  # of the only chunk
    index[8:] = (2**45).to_bytes(8, "little")
    file.write_bytes(content[:-20] + index + _checksum(bytes(index)))
    with pytest.raises(DatasetError, match="more than a chunk can have"):
        Dataset.open(dataset).train.read(0, 1)


def test_deeply_nested_json_is_damage(dataset: Path) -> None:
    (dataset / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="nested too deeply"):
        Dataset.open(dataset)


# Threads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["build a b", "train a b", "classify a b c", "find-lr a", "report a"])
def test_more_workers_than_any_machine_has_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--workers", "100000"]) == 2
    assert "expected a whole number from 1 to 1,024, found '100000'" in capsys.readouterr().err


def test_limit_of_threads_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start: Callable[[threading.Thread], None] = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "logpose-build" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert main(["build", str(images), str(tmp_path / "d.zarr"), "--size", "8"]) == 1
    assert capsys.readouterr().err.strip() == f"error: {NO_THREADS}"
