"""The commands build and verify."""

import csv
import re
import shutil
from pathlib import Path

import pytest

from pipeline.dataset.store import Dataset
from tests.jobs.conftest import RECIPE, Logpose, draw_classes, draw_image


def test_build_reports_what_was_built_and_left_out(logpose: Logpose, tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "colours", 5)
    (root / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (root / "readme.txt").write_text("not a class")
    outcome = logpose("build", root, tmp_path / "d.zarr", "--size", "20x12", "--val", 0.2)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"d\.zarr: 3 classes, \d+ images to train on, \d to validate; took ", outcome.out)
    assert "skipped, not in a class folder: readme.txt" in outcome.out
    assert f"1 file could not be read: the reasons are in {tmp_path / 'd.zarr'}" in outcome.out
    assert "building: " in outcome.out and "\x1b" not in outcome.out
    data = Dataset.open(tmp_path / "d.zarr")
    assert data.size == (12, 20)  # (H, W)
    assert data.train.rows + data.val.rows == 15
    with (tmp_path / "d.zarr" / "failures.csv").open(newline="") as file:
        (failure,) = csv.DictReader(file)
    assert failure["path"] == "red/broken.jpg"


def test_finished_dataset_needs_overwrite(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.zarr"
    arguments = ("build", image_folder, path, "--size", 8)
    assert logpose(*arguments).code == 0
    before = Dataset.open(path).content_hash
    again = logpose(*arguments)
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines() == [
        f"{path}: 3 classes, 54 images to train on, 6 to validate; already complete",
        "images of each class: blue 18 + 2, green 18 + 2, red 18 + 2",
        f"next: logpose train {path} runs/d",
    ]
    outcome = logpose(*arguments, "--seed", 1)
    assert outcome.code == 2
    assert "--overwrite" in outcome.error
    assert Dataset.open(path).content_hash == before
    assert logpose(*arguments, "--seed", 1, "--overwrite").code == 0
    assert Dataset.open(path).content_hash != before


@pytest.mark.parametrize(
    ("sort", "message"),
    [
        ("missing", "found nothing at"),
        ("empty", "found nothing in"),
        ("no folders", "found 1 file and no folder"),
        ("one class", "expected at least two classes, found only red"),
        ("an empty class", "expected images in every class, found none in"),
        ("a class of broken images", "expected a readable training image in every class, found none in blue"),
    ],
)
def test_unusable_image_folder_is_an_error(logpose: Logpose, tmp_path: Path, sort: str, message: str) -> None:
    root = tmp_path / "images"
    if sort != "missing":
        root.mkdir()
    if sort == "no folders":
        draw_image(root / "a.png", 0, 0)
    if sort in ("one class", "an empty class", "a class of broken images"):
        draw_classes(root, 3, ("red",) if sort == "one class" else ("red", "green"))
    if sort in ("an empty class", "a class of broken images"):
        (root / "blue").mkdir()
    if sort == "a class of broken images":
        (root / "blue" / "a.png").write_bytes(b"\x89PNG")
    outcome = logpose("build", root, tmp_path / "d.zarr", "--size", 8)
    assert outcome.code == 2
    assert message in outcome.error
    assert logpose("verify", tmp_path / "d.zarr").code == 2  # an unfinished dataset does not pass


@pytest.mark.parametrize("limit", ["1", "20%"])
def test_too_many_failures_stop_the_build(logpose: Logpose, tmp_path: Path, limit: str) -> None:
    root = draw_classes(tmp_path / "colours", 2)
    for number in range(2):
        (root / "red" / f"broken{number}.png").write_bytes(b"")
    outcome = logpose("build", root, tmp_path / "d.zarr", "--size", 8, "--max-failures", limit)
    assert outcome.code == 1
    assert "error: " in outcome.error
    assert logpose("build", root, tmp_path / "d.zarr", "--size", 8, "--max-failures", 2).code == 0


def test_verify_passes_an_intact_dataset(logpose: Logpose, dataset: Path) -> None:
    outcome = logpose("verify", dataset)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{dataset} is intact: 48 + 12 images in " in outcome.out


def test_verify_prints_each_damage_and_exits_with_1(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(dataset, tmp_path / "broken.zarr"))
    shard = broken / "train" / "images" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    outcome = logpose("verify", broken, "--report", tmp_path / "damage.csv")
    assert (outcome.code, outcome.err) == (1, "")
    damaged = [line for line in outcome.out.splitlines() if line.startswith("damaged: ")]
    assert len(damaged) == 1
    assert f"train images, chunk 0 in {shard}, rows 0..47 (" in damaged[0]
    assert " and 46 more): the checksum of the chunk does not match" in damaged[0]
    with (tmp_path / "damage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == Dataset.open(broken).train.paths
    assert [int(row["row"]) for row in rows] == list(range(48))
    trained = logpose("train", broken, tmp_path / "run", "--device", "cpu")
    assert trained.code == 2
    assert damaged[0].removeprefix("damaged: ") in trained.error, "train reports the same damage"
    assert "1 problem in 48 + 12 images" in outcome.out
    assert "--overwrite" in outcome.out


def test_verify_of_something_else_is_an_error(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    assert "no zarr.json at" in logpose("verify", image_folder).error
    assert "found nothing at" in logpose("verify", tmp_path / "nowhere").error


def test_build_reports_near_duplicates(logpose: Logpose, tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "colours", 6)
    shutil.copy(root / "red" / "000.png", root / "red" / "again.png")
    shutil.copy(root / "red" / "001.png", root / "blue" / "no blue.png")
    listed = tmp_path / "d.zarr" / "duplicates.csv"
    outcome = logpose("build", root, tmp_path / "d.zarr", "--size", 16)
    assert outcome.out.splitlines()[-4:-1] == [
        "near-duplicates: 4 images in 2 groups, each in one split",
        "  1 group with different labels",
        f"  listed in {listed}",
    ]
    shutil.move(root, tmp_path / "set" / "train")
    shutil.copytree(tmp_path / "set" / "train", tmp_path / "set" / "val")
    outcome = logpose("build", tmp_path / "set", tmp_path / "d.zarr", "--size", 16, "--overwrite")
    assert "near-duplicates: 40 images in 18 groups\n" in outcome.out
    assert "  20 of 20 validation images duplicate a training image\n" in outcome.out
    trained = logpose("train", tmp_path / "d.zarr", tmp_path / "run", *RECIPE)
    inflated = "20 of the 20 images to validate are near-duplicates of training images, so the accuracy is inflated"
    assert f"note {inflated}: see {listed}" in " ".join(trained.out.split())
    outcome = logpose("build", tmp_path / "set", tmp_path / "e.zarr", "--no-group-copies")
    assert "near-duplicates" not in outcome.out
