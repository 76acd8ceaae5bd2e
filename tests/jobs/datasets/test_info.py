"""The command info: figures and contact sheet."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from rich.cells import cell_len

from pipeline.dataset.schema import SHEET_FILE
from pipeline.dataset.store import Dataset, Split
from tests.jobs.conftest import CLASSES, Logpose, draw_classes


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to draw into and to damage: 3 classes of 16 + 4 images of 16 by 16."""
    return Path(shutil.copytree(dataset, tmp_path / "copy.zarr"))


def value(out: str, key: str) -> str:
    """Return what is printed after a key."""
    (found,) = re.findall(rf"^{key} +(.*)$", out, re.MULTILINE)
    return str(found)


def sheet_of(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)  # (H, W, 3)


def find(sheet: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8], times: int) -> list[tuple[int, int]]:
    """Where (y, x) an image (H, W, 3) is on a sheet (H, W, 3), each of its pixels enlarged so many times."""
    large = image.repeat(times, axis=0).repeat(times, axis=1)  # (H·times, W·times, 3)
    height, width = large.shape[:2]
    corners = np.argwhere((sheet == large[0, 0]).all(axis=2)).tolist()
    return [(y, x) for y, x in corners if np.array_equal(sheet[y : y + height, x : x + width], large)]


# The figures ------------------------------------------------------------------------------------------


def test_figures(logpose: Logpose, copy: Path) -> None:
    outcome = logpose("info", copy)
    assert (outcome.code, outcome.err) == (0, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", outcome.out)
    assert not re.search(r" $", outcome.out, re.MULTILINE)
    data = Dataset.open(copy)
    classes = outcome.out.split("\n\n")[1].splitlines()
    for label, name in enumerate(CLASSES):
        train, val = (np.count_nonzero(part.labels == label) for part in (data.train, data.val))
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
def test_near_duplicates(logpose: Logpose, copy: Path, copies: tuple[int, ...] | None, lines: list[str]) -> None:
    node = json.loads((copy / "zarr.json").read_bytes())
    names = ("groups", "pictures", "labels_differ", "leaks")
    node["attributes"]["copies"] = copies and dict(zip(names, copies, strict=True))
    (copy / "zarr.json").write_text(json.dumps(node))
    out = logpose("info", copy, "--no-sheet").out.splitlines()
    (first,) = [number for number, line in enumerate(out) if line.startswith("duplicates")]
    shown = [line.removeprefix("duplicates").strip() for line in out[first:]]
    assert shown == [line.format(copy / "duplicates.csv") for line in lines]


# The sheet --------------------------------------------------------------------------------------------


def test_sheet_shows_each_image_in_its_row(logpose: Logpose, copy: Path) -> None:
    logpose("info", copy)
    sheet, data = sheet_of(copy / SHEET_FILE), Dataset.open(copy)
    places = {}
    for part, count in ((data.train, 12), (data.val, 2)):
        images = part.read(0, part.rows)  # (N, H, W, 3)
        for label in range(3):
            for column, row in enumerate(np.flatnonzero(part.labels == label)):
                found = find(sheet, images[row], 6)
                assert len(found) == (1 if column < count else 0), "shown once, or not at all"
                if found:
                    places[part.name, label, column] = found[0]
    top, left = places["train", 0, 0]
    for (part, label, column), (y, x) in places.items():
        assert y == top + label * 108
        # 12 of 96 pixels with gaps of 6; the validation images stand apart.
        assert x == left + column * 102 + (0 if part == "train" else 12 * 102 - 6 + 30)
    assert sheet.shape == (top + 3 * 108 - 12 + 36, places["val", 0, 1][1] + 96 + 36, 3)
    before = sheet[:, : left - 1].reshape(-1, 3)
    assert len(np.unique(before, axis=0)) > 10, "names and counts stand before the images"


def test_sheet_without_validation_is_narrower(logpose: Logpose, image_folder: Path, copy: Path, tmp_path: Path) -> None:
    logpose("build", image_folder, tmp_path / "d.zarr", "--size", 16, "--val", 0)
    for path in (copy, tmp_path / "d.zarr"):
        logpose("info", path)
    with_val, without = sheet_of(copy / SHEET_FILE), sheet_of(tmp_path / "d.zarr" / SHEET_FILE)
    assert without.shape[0] == with_val.shape[0]
    assert without.shape[1] < with_val.shape[1] - 2 * 96


@pytest.mark.parametrize(
    ("size", "cell"), [("200x100", (96, 48)), ("100x300", (32, 96)), ("64x60", (64, 60)), ("40x48", (80, 96))]
)
def test_images_are_scaled_to_a_visible_size(
    logpose: Logpose, tmp_path: Path, size: str, cell: tuple[int, int]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 20), "#ff0000").save(tmp_path / "images" / name / f"{number}.png")
    logpose("build", tmp_path / "images", tmp_path / "d.zarr", "--size", size, "--fit", "squash", "--val", 0)
    logpose("info", tmp_path / "d.zarr")
    red = (sheet_of(tmp_path / "d.zarr" / SHEET_FILE) == (255, 0, 0)).all(axis=2)  # (H, W)
    assert np.count_nonzero(red.any(axis=0)) == 3 * cell[0]
    assert np.count_nonzero(red.any(axis=1)) == 2 * cell[1]


def test_sheet_is_limited_to_60_classes(logpose: Logpose, tmp_path: Path) -> None:
    draw_classes(tmp_path / "images", 1, [f"class {number:02}" for number in range(62)])
    logpose("build", tmp_path / "images", tmp_path / "d.zarr", "--size", 16, "--val", 0)
    out = logpose("info", tmp_path / "d.zarr").out
    assert value(out, "class 61").split() == ["1", "0"]
    assert re.search(r"^fewer than 10 to train on: .* and 57 more$", out, re.MULTILINE)
    assert value(out, "sheet").endswith("contact-sheet.png, the first 60 of 62 classes")
    sheet, train = sheet_of(tmp_path / "d.zarr" / SHEET_FILE), Dataset.open(tmp_path / "d.zarr").train
    for label, count in ((0, 1), (59, 1), (60, 0), (61, 0)):
        (row,) = np.flatnonzero(train.labels == label).tolist()
        assert len(find(sheet, train.read(row, row + 1)[0], 6)) == count


def test_only_needed_chunks_are_read(logpose: Logpose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.dataset.schema.CHUNK_BYTES", 4 * 8 * 8 * 3)
    draw_classes(tmp_path / "images", 100, ("a", "b"))
    logpose("build", tmp_path / "images", tmp_path / "d.zarr", "--size", 8, "--val", 0)
    read, chunks = Split.read, []

    def counted(part: Split, start: int, stop: int) -> npt.NDArray[np.uint8]:
        assert (start % 4, stop) == (0, start + 4), "whole chunks"
        chunks.append(start // 4)
        return read(part, start, stop)

    monkeypatch.setattr(Split, "read", counted)
    assert logpose("info", tmp_path / "d.zarr").code == 0
    assert chunks == sorted(set(chunks))
    assert 6 <= len(chunks) < 20, "of 50: the first 12 of either class"


def test_class_names_in_any_script(logpose: Logpose, tmp_path: Path) -> None:
    names = ("ルフィ", "王下七武海", "العربية", "한국어", "\U0010fffd", "ab\tc", "w" * 200)
    draw_classes(tmp_path / "海賊", 3, names)
    logpose("build", tmp_path / "海賊", tmp_path / "海賊.zarr", "--size", 8, "--val", 0)
    outcome = logpose("info", tmp_path / "海賊.zarr")
    assert (outcome.code, outcome.err) == (0, "")
    table = outcome.out.split("\n\n")[1].splitlines()[:9]
    assert len(set(map(cell_len, table))) == 1, "aligned, although some characters take two columns"
    assert re.search(r"^ +\d names? ha\w+ letters that no installed font has; install ", outcome.out, re.MULTILINE)
    height, width = sheet_of(tmp_path / "海賊.zarr" / SHEET_FILE).shape[:2]
    assert height < 1200 and width < 1000, "a long name is cut"


def test_dataset_name_with_control_characters(logpose: Logpose, copy: Path) -> None:
    renamed = copy.rename(copy.parent / "a\n\udcff.zarr")
    outcome = logpose("info", renamed)
    assert (outcome.code, outcome.err) == (0, "")
    assert value(outcome.out, "dataset").endswith(r"a\x0a\udcff.zarr")
    assert (renamed / SHEET_FILE).exists()


# The file ---------------------------------------------------------------------------------------------


def test_no_sheet(logpose: Logpose, copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    outcome = logpose("info", copy, "--no-sheet")
    assert outcome.code == 0 and not re.search("^sheet", outcome.out, re.MULTILINE)
    assert sorted(copy.rglob("*")) == before


def test_sheet_in_another_place(logpose: Logpose, copy: Path, tmp_path: Path) -> None:
    place = tmp_path / "new" / "sheet.png"
    for _ in range(2):  # the second replaces the first
        assert value(logpose("info", copy, "--sheet", place).out, "sheet") == str(place)
    assert sheet_of(place).shape[2] == 3
    assert [path.name for path in place.parent.iterdir()] == ["sheet.png"]
    assert not (copy / SHEET_FILE).exists()


@pytest.mark.parametrize("sort", ["an image", "a folder", "not a PNG", "both options"])
def test_unusable_sheet_paths_are_rejected(logpose: Logpose, copy: Path, tmp_path: Path, sort: str) -> None:
    place = tmp_path / ("sheet.jpg" if sort == "not a PNG" else "mine.png")
    if sort == "an image":
        Image.new("RGB", (400, 400), "red").save(place)
    if sort == "a folder":
        place.mkdir()
    before = sorted(tmp_path.rglob("*")), place.read_bytes() if sort == "an image" else b""
    outcome = logpose("info", copy, "--sheet", place, *(["--no-sheet"] if sort == "both options" else []))
    assert (outcome.code, outcome.out) == (2, "")
    assert str(place) in outcome.error
    assert before == (sorted(tmp_path.rglob("*")), place.read_bytes() if sort == "an image" else b"")


def test_read_only_dataset_has_no_sheet(logpose: Logpose, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("jobs.datasets.contact_sheet.atomic_writer", refuse)
    outcome = logpose("info", copy)
    assert (outcome.code, outcome.err) == (0, "")
    sheet = value(outcome.out, "sheet")
    assert sheet == f"none: permission denied at {copy / SHEET_FILE}; draw it elsewhere with --sheet FILE.png"
    outcome = logpose("info", copy, "--sheet", copy / "other.png")
    assert outcome.code == 2, "--sheet was given"
    assert "permission denied" in outcome.error


def test_sheet_does_not_make_a_dataset_invalid(logpose: Logpose, image_folder: Path, copy: Path) -> None:
    logpose("info", copy)
    assert logpose("verify", copy).code == 0
    assert logpose("info", copy).code == 0
    assert logpose("build", image_folder, copy, "--size", 8, "--overwrite").code == 0
    assert not (copy / SHEET_FILE).exists(), "it showed the previous images"
    assert Dataset.open(copy).size == (8, 8)


def test_damaged_chunk_is_an_error(logpose: Logpose, copy: Path) -> None:
    shard = copy / "train" / "images" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    outcome = logpose("info", copy)
    assert outcome.code == 2
    assert "train" in outcome.error and f"logpose verify {copy}" in outcome.error
    assert not list(copy.glob("*.png")) and not list(copy.glob(".*"))
    assert logpose("info", copy, "--no-sheet").code == 0


def test_not_a_dataset_is_an_error(logpose: Logpose, copy: Path, image_folder: Path, tmp_path: Path) -> None:
    assert "no zarr.json in it" in logpose("info", image_folder).error
    assert "found nothing at" in logpose("info", tmp_path / "nowhere").error
    node = json.loads((copy / "zarr.json").read_bytes())
    node["attributes"]["sealed"] = False
    (copy / "zarr.json").write_text(json.dumps(node))
    assert "found one still being built" in logpose("info", copy).error
