"""Listing a folder of classes: contents, order, and the message for each wrong layout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from logpose.common.errors import printable
from pipeline.errors import ListingError
from pipeline.scan.class_folders import list_images


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_classes_and_images_are_sorted_and_nested_folders_listed(tmp_path: Path) -> None:
    source = list_images(tree(tmp_path, "zoro/b.jpg", "zoro/a.txt", "luffy/deep/er/c.png", "notes.txt"))
    assert source.class_names == ("luffy", "zoro")
    assert [(file.path, file.label, file.split) for file in source.files] == [
        ("luffy/deep/er/c.png", 0, None), ("zoro/a.txt", 1, None), ("zoro/b.jpg", 1, None)
    ]  # fmt: skip
    assert source.skipped == ("notes.txt",)
    assert not source.has_splits


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_folders_train_and_val_give_the_split(tmp_path: Path, val: str) -> None:
    source = list_images(tree(tmp_path, "train/a/1", "train/b/2", "train/c/5", f"{val}/a/3", f"{val}/b/4"))
    assert source.class_names == ("a", "b", "c")
    assert {(file.path, file.split) for file in source.files} == {
        ("train/a/1", "train"), ("train/b/2", "train"), ("train/c/5", "train"),
        (f"{val}/a/3", "val"), (f"{val}/b/4", "val"),
    }  # fmt: skip


def test_val_is_preferred_to_test_which_is_reported_as_skipped(tmp_path: Path) -> None:
    source = list_images(tree(tmp_path, "train/a/1", "train/b/2", "val/a/3", "test/a/4"))
    assert "val/a/3" in {file.path for file in source.files}
    assert source.skipped == ("test",)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert list_images(tree(tmp_path, "train/1", "car/2")).class_names == ("car", "train")


def test_clutter_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path, "a/1", "b/2", "a/.DS_Store", "a/Thumbs.db", ".git/x/y", "__MACOSX/a/1", "b/.hidden/3")
    assert [file.path for file in list_images(tmp_path).files] == ["a/1", "b/2"]


def test_links_are_followed_but_not_in_cycles(tmp_path: Path) -> None:
    tree(tmp_path, "a/1", "b/2")
    (tmp_path / "a/round").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "b/dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b/itself").symlink_to(tmp_path / "b/itself")
    assert [file.path for file in list_images(tmp_path).files] == ["a/1", "b/2", "b/dangling", "b/itself"]


WRONG = {
    "missing": ((), "found nothing at {root}: check the path"),
    "empty": (("",), "found nothing in {root}: check the path"),
    "loose": (("1.jpg", "2.jpg"), "found 2 files and no folder in {root}: move each image into a folder"),
    "one class": (("a/1",), "at least two classes, found only a in {root}: add another class"),
    "empty class": (("a/1", "b/"), "images in every class, found none in {root}/b: add some or remove"),
    "only train": (("train/a/1",), "found only train/ in {root}: give {root}/train itself"),
    "only in val": (("train/a/1", "train/b/2", "val/c/3"), "found c only in val of {root}: add it to train"),
    "flat val": (("train/a/1", "train/b/2", "val/3"), "one folder per class in {root}/val, found 1 file"),
    "empty val": (("train/a/1", "train/b/2", "val/"), "one folder per class in {root}/val, found nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_layout_raises_listing_error(tmp_path: Path, case: str) -> None:
    paths, expected = WRONG[case]
    root = tmp_path / "images"
    for path in paths:
        if path.endswith("/") or not path:
            (root / path).mkdir(parents=True, exist_ok=True)
        else:
            tree(root, path)
    with pytest.raises(ListingError) as caught:
        list_images(root)
    assert expected.format(root=root) in str(caught.value)
    assert str(caught.value).startswith("expected ")
    assert caught.value.exit_code == 2


def test_file_instead_of_folder_raises_listing_error(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg")
    with pytest.raises(ListingError, match=r"found a file at .*: give the folder it is in"):
        list_images(tmp_path / "a.jpg")


def test_unreadable_folder_raises_listing_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1", "b/2")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ListingError, match=r"found permission denied at .*b: check its permissions"):
        list_images(tmp_path)


def test_messages_are_one_line_of_valid_utf8(tmp_path: Path) -> None:
    with pytest.raises(ListingError) as caught:
        list_images(tmp_path / "two\nlines \udcff")
    assert "two\\x0alines \\udcff" in str(caught.value)
    assert printable("ünï 写真") == "ünï 写真"
