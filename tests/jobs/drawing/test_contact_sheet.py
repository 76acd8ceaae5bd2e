"""Contact sheets: which images they show, where they are written, and what they never replace."""

import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.dataset.schema import SHEET_FILE
from pipeline.dataset.store import Dataset, Split
from tests.jobs.conftest import Logpose, draw_classes


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to draw into and to damage: 3 classes of 16 + 4 images of 16x16."""
    return Path(shutil.copytree(dataset, tmp_path / "copy.zarr"))


def sheet_line(out: str) -> str:
    """The value of the line `sheet` that `logpose info` prints."""
    (found,) = re.findall(r"^sheet +(.*)$", out, re.MULTILINE)
    return str(found)


def sheet_of(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)  # (H, W, 3)


def find_on(sheet: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8], times: int) -> list[tuple[int, int]]:
    """All (y, x) at which an image (H, W, 3), enlarged `times`, is on a sheet (H, W, 3)."""
    large = image.repeat(times, axis=0).repeat(times, axis=1)  # (H·times, W·times, 3)
    height, width = large.shape[:2]
    corners = np.argwhere((sheet == large[0, 0]).all(axis=2)).tolist()
    return [(y, x) for y, x in corners if np.array_equal(sheet[y : y + height, x : x + width], large)]


# Drawing ----------------------------------------------------------------------------------------------


def test_images_are_in_the_rows_of_their_class(logpose: Logpose, copy: Path) -> None:
    logpose("info", copy)
    sheet, data = sheet_of(copy / SHEET_FILE), Dataset.open(copy)
    corners = {}
    for split, count in ((data.train, 12), (data.val, 2)):
        images = split.read(0, split.rows)  # (N, H, W, 3)
        for label in range(3):
            for column, row in enumerate(np.flatnonzero(split.labels == label)):
                found = find_on(sheet, images[row], 6)
                assert len(found) == (1 if column < count else 0), "shown once, or not at all"
                if found:
                    corners[split.name, label, column] = found[0]
    top, left = corners["train", 0, 0]
    for (split, label, column), (y, x) in corners.items():
        assert y == top + label * 108
        # 12 of 96 pixels with 6 in between; validation images stand apart.
        assert x == left + column * 102 + (0 if split == "train" else 12 * 102 - 6 + 30)
    assert sheet.shape == (top + 3 * 108 - 12 + 36, corners["val", 0, 1][1] + 96 + 36, 3)
    before = sheet[:, : left - 1].reshape(-1, 3)
    assert len(np.unique(before, axis=0)) > 10, "names and counts stand before the images"


def test_sheet_without_validation_images_is_narrower(
    logpose: Logpose, image_folder: Path, copy: Path, tmp_path: Path
) -> None:
    logpose("build", image_folder, tmp_path / "d.zarr", "--size", 16, "--val", 0)
    for path in (copy, tmp_path / "d.zarr"):
        logpose("info", path)
    with_val, without = sheet_of(copy / SHEET_FILE), sheet_of(tmp_path / "d.zarr" / SHEET_FILE)
    assert without.shape[0] == with_val.shape[0]
    assert without.shape[1] < with_val.shape[1] - 2 * 96


@pytest.mark.parametrize(
    ("size", "cell"), [("200x100", (96, 48)), ("100x300", (32, 96)), ("64x60", (64, 60)), ("40x48", (80, 96))]
)
def test_images_are_scaled_to_the_cell(logpose: Logpose, tmp_path: Path, size: str, cell: tuple[int, int]) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 20), "#ff0000").save(tmp_path / "images" / name / f"{number}.png")
    logpose("build", tmp_path / "images", tmp_path / "d.zarr", "--size", size, "--fit", "squash", "--val", 0)
    logpose("info", tmp_path / "d.zarr")
    red = (sheet_of(tmp_path / "d.zarr" / SHEET_FILE) == (255, 0, 0)).all(axis=2)  # (H, W)
    assert np.count_nonzero(red.any(axis=0)) == 3 * cell[0]
    assert np.count_nonzero(red.any(axis=1)) == 2 * cell[1]


def test_classes_beyond_the_maximum_are_left_out_and_reported(logpose: Logpose, tmp_path: Path) -> None:
    draw_classes(tmp_path / "images", 1, [f"class {number:02}" for number in range(62)])
    logpose("build", tmp_path / "images", tmp_path / "d.zarr", "--size", 16, "--val", 0)
    out = logpose("info", tmp_path / "d.zarr").out
    assert sheet_line(out).endswith("contact-sheet.png, the first 60 of 62 classes")
    sheet, train = sheet_of(tmp_path / "d.zarr" / SHEET_FILE), Dataset.open(tmp_path / "d.zarr").train
    for label, count in ((0, 1), (59, 1), (60, 0), (61, 0)):
        (row,) = np.flatnonzero(train.labels == label).tolist()
        assert len(find_on(sheet, train.read(row, row + 1)[0], 6)) == count


def test_only_needed_chunks_are_read(logpose: Logpose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.dataset.schema.CHUNK_BYTES", 4 * 8 * 8 * 3)
    draw_classes(tmp_path / "images", 100, ("a", "b"))
    logpose("build", tmp_path / "images", tmp_path / "d.zarr", "--size", 8, "--val", 0)
    read, chunks = Split.read, []

    def counted(split: Split, start: int, stop: int) -> npt.NDArray[np.uint8]:
        assert start // 4 == (stop - 1) // 4, "one chunk at a time"
        chunks.append(start // 4)
        return read(split, start, stop)

    monkeypatch.setattr(Split, "read", counted)
    assert logpose("info", tmp_path / "d.zarr").code == 0
    assert chunks == sorted(set(chunks))
    assert 6 <= len(chunks) < 20, "of 50: the first 12 of either class"


def test_names_are_drawn_in_any_script(logpose: Logpose, tmp_path: Path) -> None:
    names = ("ルフィ", "王下七武海", "العربية", "한국어", "\U0010fffd", "ab\tc", "w" * 200)
    draw_classes(tmp_path / "海賊", 3, names)
    logpose("build", tmp_path / "海賊", tmp_path / "海賊.zarr", "--size", 8, "--val", 0)
    outcome = logpose("info", tmp_path / "海賊.zarr")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"^ +\d names? ha.* font.* install ", outcome.out, re.MULTILINE)
    height, width = sheet_of(tmp_path / "海賊.zarr" / SHEET_FILE).shape[:2]
    assert height < 1200 and width < 1000, "a long name is cut"


def test_dataset_name_with_control_characters_is_escaped(logpose: Logpose, copy: Path) -> None:
    renamed = copy.rename(copy.parent / "a\n\udcff.zarr")
    outcome = logpose("info", renamed)
    assert (outcome.code, outcome.err) == (0, "")
    assert sheet_line(outcome.out).endswith(r"a\x0a\udcff.zarr/contact-sheet.png")
    assert (renamed / SHEET_FILE).exists()


# File -------------------------------------------------------------------------------------------------


def test_no_sheet_writes_nothing(logpose: Logpose, copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    outcome = logpose("info", copy, "--no-sheet")
    assert outcome.code == 0 and not re.search("^sheet", outcome.out, re.MULTILINE)
    assert sorted(copy.rglob("*")) == before


def test_sheet_is_written_elsewhere_and_replaced(logpose: Logpose, copy: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    for _ in range(2):  # an earlier sheet is replaced
        assert sheet_line(logpose("info", copy, "--sheet", path).out) == str(path)
    assert sheet_of(path).shape[2] == 3
    assert [path.name for path in path.parent.iterdir()] == ["sheet.png"]
    assert not (copy / SHEET_FILE).exists()


@pytest.mark.parametrize("sort", ["an image", "a folder", "another ending", "both options"])
def test_path_of_another_file_is_refused(logpose: Logpose, copy: Path, tmp_path: Path, sort: str) -> None:
    path = tmp_path / ("sheet.jpg" if sort == "another ending" else "mine.png")
    if sort == "an image":
        Image.new("RGB", (400, 400), "red").save(path)
    if sort == "a folder":
        path.mkdir()
    before = sorted(tmp_path.rglob("*")), path.read_bytes() if sort == "an image" else b""
    outcome = logpose("info", copy, "--sheet", path, *(["--no-sheet"] if sort == "both options" else []))
    assert (outcome.code, outcome.out) == (2, "")
    assert str(path) in outcome.error
    assert before == (sorted(tmp_path.rglob("*")), path.read_bytes() if sort == "an image" else b"")


def test_read_only_dataset_is_reported_and_other_path_fails(
    logpose: Logpose, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("jobs.drawing.contact_sheet.write_replaceable", refuse)
    outcome = logpose("info", copy)
    assert (outcome.code, outcome.err) == (0, "")
    found = sheet_line(outcome.out)
    assert f"permission denied at {copy / SHEET_FILE}" in found and found.endswith("--sheet FILE.png")
    outcome = logpose("info", copy, "--sheet", copy / "other.png")
    assert outcome.code == 2, "a sheet asked for explicitly must be written"
    assert "permission denied" in outcome.error


def test_dataset_with_a_sheet_verifies_and_rebuilds(logpose: Logpose, image_folder: Path, copy: Path) -> None:
    logpose("info", copy)
    assert logpose("verify", copy).code == 0
    assert logpose("info", copy).code == 0
    assert logpose("build", image_folder, copy, "--size", 8, "--overwrite").code == 0
    assert not (copy / SHEET_FILE).exists(), "it showed the old images"
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
