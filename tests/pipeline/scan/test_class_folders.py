"""Listing a folder of classes: contents, order, and the message for each wrong layout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from logpose.common.errors import printable
from pipeline.errors import ListingError
from pipeline.scan.class_folders import alike_names, deep_classes, list_images


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


@pytest.mark.parametrize(
    "names",
    ["Training Test", "Train Val", "TRAIN TEST", "training_set test_set", "train dev", "train eval", "trainset valset",
     "Train-Images Validation-Images", "train2017 val2017", "TrainingData TestingData", "training evaluation"],
)  # fmt: skip
def test_folders_of_a_split_are_recognised_by_other_names(tmp_path: Path, names: str) -> None:
    train, val = names.split()
    source = list_images(tree(tmp_path, f"{train}/a/1", f"{train}/b/2", f"{val}/a/3"))
    assert source.class_names == ("a", "b")
    assert [(file.path, file.split) for file in source.files] == sorted(
        [(f"{train}/a/1", "train"), (f"{train}/b/2", "train"), (f"{val}/a/3", "val")]
    )


def test_folders_beside_those_of_a_split_are_skipped(tmp_path: Path) -> None:
    source = list_images(tree(tmp_path, "Train/a/1", "Train/b/2", "Val/a/3", "Test/a/4", "extra/a/5", "x.csv"))
    assert source.class_names == ("a", "b")
    assert source.skipped == ("Test", "extra", "x.csv")


def test_classes_named_like_splits_beside_other_classes(tmp_path: Path) -> None:
    source = list_images(tree(tmp_path, "train/1.jpg", "car/3.jpg", "set/4.jpg", "test tube/5.jpg"))
    assert source.class_names == ("car", "set", "test tube", "train")
    assert not source.has_splits


def test_classes_with_folders_in_them(tmp_path: Path) -> None:
    source = list_images(tree(tmp_path, "a/2020/1.jpg", "a/notes.txt", "b/2.jpg", "c/2020/3.jpg"))
    assert source.class_names == ("a", "b", "c")
    assert deep_classes(source) == ["c"]
    assert alike_names(["Cat", "cat", "dog"]) == [("Cat", "cat")]


def test_folder_of_a_split_within_one_of_its_name(tmp_path: Path) -> None:
    paths = ["test/test/cats/1.jpg", "training/training/cats/2.jpg", "training/training/dogs/3.jpg"]
    source = list_images(tree(tmp_path, *paths))
    assert source.class_names == ("cats", "dogs")
    assert [(file.path, file.split) for file in source.files] == [*zip(paths, ("val", "train", "train"), strict=True)]
    assert source.skipped == ()
    assert deep_classes(source) == []


def test_a_folder_of_one_name_in_every_class(tmp_path: Path) -> None:
    source = list_images(tree(tmp_path, "n01/images/1.jpg", "n01/boxes.txt", "n02/images/2.jpg", "n02/boxes.txt"))
    assert source.class_names == ("n01", "n02")


def test_files_beside_the_classes_of_a_split_are_reported_as_skipped(tmp_path: Path) -> None:
    source = list_images(tree(tmp_path, "train/a/1", "train/b/2", "train/x.csv", "val/a/3", "val/y.jpg", "z.txt"))
    assert source.skipped == ("train/x.csv", "val/y.jpg", "z.txt")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert list_images(tree(tmp_path, "train/1", "car/2")).class_names == ("car", "train")


def test_clutter_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path, "a/1", "b/2", "a/.DS_Store", "a/Thumbs.db", ".git/x/y", "__MACOSX/a/1", "b/.hidden/3")
    tree(tmp_path, "lost+found/1", ".ipynb_checkpoints/1", "a/.ipynb_checkpoints/2", "@eaDir/1", "b/@eaDir/2/3")
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
    "split in other words": (("seg_train/a/1.jpg", "seg_test/a/2.jpg"), "rename the folders of a split to train and"),
    "train and something": (("train/a/1.jpg", "extra/a/2.jpg"), "found only folders in extra, train of {root}: rename"),
    "only test sets": (("Val/a/1.jpg", "Test/a/2.jpg"), "found only folders in Test, Val of {root}: rename"),
    "splits in classes": (("a/train/1.jpg", "b/train/1.jpg", "b/x.csv"), "found only folders in a, b of {root}: give"),
    "too high": (("flowers/a/1.jpg", "flowers/b/2.jpg"), "only folders in flowers of {root}: give {root}/flowers"),
    "too high in val": (("train/x/a/1", "train/y/b/2", "val/x/a/3"), "only folders in x, y of {root}/train: give one"),
    "only Training": (("Training/a/1",), "found only Training/ in {root}: give {root}/Training itself"),
    "two of train": (("train/a/1", "Training/b/2", "test/a/3"), "found Training and train in {root}: merge or rename"),
    "two of val": (("train/a/1", "val/a/2", "Val/a/3"), "found Val and val in {root}: merge or rename them"),
    "two forms": (("caf\xe9/1", "cafe\u0301/2"), "found 'caf\\xe9' and 'cafe\\u0301' in {root}, which are the same"),
    "other case in val": (("train/Cat/1", "train/b/2", "val/cat/3"), "give it the name of 'Cat' in train"),
    "flat test of words": (("seg_train/a/1.jpg", "seg_train/b/2.jpg", "x/3.jpg"), "give {root}/seg_train itself"),
    "flat Test": (("Train/0/1.jpg", "Train/1/2.jpg", "Test/3.jpg", "Meta/4.jpg"), "give {root}/Train itself, or move"),
    "two parts of a split": (("box_train/1.jpg", "box_test/2.jpg", "query/3.jpg"), "in box_train and in box_test of"),
    "SVHN": (("train/1.png", "test/2.png", "extra/3.png"), "found images in train and in test of {root}, which look"),
    "trainA": (("trainA/1.jpg", "trainB/2.jpg", "testA/3.jpg", "testB/4.jpg"), "in trainA and in testA of {root}"),
    "lists beside": (("images/a/1.jpg", "images/b/2.jpg", "meta/train.txt"), "give {root}/images itself"),
    "named as a split": (("train_val_images/a/1.jpg",), "train_val_images of {root}: give {root}/train_val_images"),
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
