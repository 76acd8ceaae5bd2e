"""The command info: the figures that it prints."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.schema import SHEET_FILE
from pipeline.dataset.store import Dataset
from tests.jobs.conftest import CLASSES, Logpose, draw_classes


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to change and to damage: 3 classes of 16 + 4 images of 16 by 16."""
    return Path(shutil.copytree(dataset, tmp_path / "copy.zarr"))


def value(out: str, key: str) -> str:
    """Return the value that is printed after `key`."""
    (found,) = re.findall(rf"^{key} +(.*)$", out, re.MULTILINE)
    return str(found)


def test_info_prints_the_figures_of_the_dataset(logpose: Logpose, copy: Path) -> None:
    outcome = logpose("info", copy)
    assert (outcome.code, outcome.err) == (0, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", outcome.out)
    assert not re.search(r" $", outcome.out, re.MULTILINE)
    data = Dataset.open(copy)
    classes = outcome.out.split("\n\n")[1].splitlines()
    for label, name in enumerate(CLASSES):
        train, val = (np.count_nonzero(split.labels == label) for split in (data.train, data.val))
        assert (train, val) == (16, 4)
        assert classes[1 + label].split() == [name, "16", "4"]
    assert classes[4:] == ["3 classes      48   12", "every class has 20 images"]
    assert value(outcome.out, "dataset") == str(copy)
    assert value(outcome.out, "size") == "16×16 (pad)"
    assert value(outcome.out, "seed") == "0"
    assert value(outcome.out, "content") == data.content_hash
    assert value(outcome.out, "source") == data.attributes.source
    assert value(outcome.out, "failures") == "none"
    assert value(outcome.out, "codecs") == "bytes, crc32c"
    assert value(outcome.out, "sheet") == str(copy / SHEET_FILE)
    blue = data.train.read(0, 48)[..., 2]  # (N, H, W)
    channels = outcome.out.split("\n\n")[2].splitlines()
    assert channels[3].split() == ["blue", f"{blue.mean():.1f}", f"{blue.std():.1f}"]


def test_storage_is_in_megabytes(logpose: Logpose, copy: Path) -> None:
    files = [path for path in (copy / "train" / "images").rglob("*") if path.is_file()]
    disk, pixels = sum(path.stat().st_size for path in files), 48 * 16 * 16 * 3
    figures = re.split(r"  +", value(logpose("info", copy, "--no-sheet").out, "train"))
    assert figures[:3] == [f"{disk / 1e6:.3f} MB", f"{pixels / 1e6:.3f} MB", f"{pixels / disk:.2f}"]
    cut = Dataset.open(copy).train.layout
    assert figures[3:] == ["1", str(cut.chunk_rows), "1", str(cut.shard_rows)]


def test_shuffle_is_that_of_the_training(logpose: Logpose, copy: Path) -> None:
    plain = logpose("info", copy, "--no-sheet", "--shuffle").out
    assert value(plain, "shuffle") == "epoch 1 of seed 0, compared with 400 random permutations"
    divided = logpose("info", copy, "--no-sheet", "--shuffle", "--batch-size", 12, "--micro-batch", 5).out
    assert value(divided, "shuffle") == (
        "epoch 1 of seed 0, batches of 12 from 3 lanes, compared with 400 random permutations"
    )
    assert re.search(r"^one class .*  random$", divided, re.MULTILINE)


def test_uneven_and_small_classes(logpose: Logpose, tmp_path: Path) -> None:
    draw_classes(tmp_path / "images", 24, ("many",))
    draw_classes(tmp_path / "images", 5, ("few", "also few"))
    logpose("build", tmp_path / "images", tmp_path / "d.zarr", "--size", 8, "--val", 0.2)
    out = logpose("info", tmp_path / "d.zarr", "--no-sheet").out
    lines = out.splitlines()
    assert "largest class 24 (many), smallest 5 (also few): 4.80 to 1" in lines
    assert "fewer than 10 to train on: also few (4), few (4)" in lines


def test_failures_are_counted_by_kind(logpose: Logpose, tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "images", 4)
    for name in ("1.png", "2.png"):
        (root / "red" / name).write_bytes(b"")
    (root / "blue" / "3.jpg").write_bytes(b"no image at all")
    logpose("build", root, tmp_path / "d.zarr", "--size", 8)
    file = tmp_path / "d.zarr" / "failures.csv"
    with file.open(newline="") as rows:
        assert len(list(csv.DictReader(rows))) == 3
    failures = value(logpose("info", tmp_path / "d.zarr").out, "failures")
    assert failures == f"3 files left out: 2 empty, 1 not-an-image; see {file}"
    file.unlink()
    assert value(logpose("info", tmp_path / "d.zarr").out, "failures") == f"unknown: {file} is missing or damaged"


AMONG = "with a near-duplicate among the training images"


@pytest.mark.parametrize(
    ("copies", "lines"),
    [
        (None, ["not searched for"]),
        ((0, 0, 0, 0), ["none"]),
        ((1, 2, 0, 0), ["2 images in 1 group; see {}", f"no validation image {AMONG}"]),
        (
            (12, 1300, 1, 3),
            [
                "1,300 images in 12 groups; see {}",
                "1 group with more than one label",
                f"3 validation images {AMONG}",
            ],
        ),
    ],
)
def test_near_duplicates_are_summarised(
    logpose: Logpose, copy: Path, copies: tuple[int, ...] | None, lines: list[str]
) -> None:
    node = json.loads((copy / "zarr.json").read_bytes())
    names = ("groups", "pictures", "labels_differ", "leaks")
    del node["attributes"]["crc32"]
    node["attributes"]["copies"] = copies and dict(zip(names, copies, strict=True))
    (copy / "zarr.json").write_text(json.dumps(node))
    out = logpose("info", copy, "--no-sheet").out.splitlines()
    (first,) = [number for number, line in enumerate(out) if line.startswith("duplicates")]
    shown = [line.removeprefix("duplicates").strip() for line in out[first:]]
    assert shown == [line.format(copy / "duplicates.csv") for line in lines]


def test_not_a_dataset_is_an_error(logpose: Logpose, copy: Path, image_folder: Path, tmp_path: Path) -> None:
    assert "no zarr.json at" in logpose("info", image_folder).error
    assert "found nothing at" in logpose("info", tmp_path / "nowhere").error
    node = json.loads((copy / "zarr.json").read_bytes())
    node["attributes"]["sealed"] = False
    del node["attributes"]["crc32"]
    (copy / "zarr.json").write_text(json.dumps(node))
    assert "found an unfinished build" in logpose("info", copy).error
