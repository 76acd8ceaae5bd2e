"""Near-duplicates in the report: which groups, and which of their images."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np

from jobs.report.near_duplicates import select_groups
from pipeline.dataset.schema import DUPLICATES_FILE
from pipeline.dataset.store import Dataset, Split
from tests.jobs.conftest import Logpose
from tests.jobs.report.pages import Page, nearest_path, read_report


def with_duplicates(dataset: Path, target: Path, groups: list[list[tuple[str, int]]]) -> Path:
    """A copy of the dataset in which these rows (split, row) are groups of near-duplicates. Row 5 is labelled green."""
    path = Path(shutil.copytree(dataset, target))
    data = Dataset.open(path)
    with (path / DUPLICATES_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["group", "part", "label", "path", "how", "labels"])
        for number, members in enumerate(groups, 1):
            for name, row in members:
                split = data.train if name == "train" else data.val
                label = data.class_names[split.labels[row]] if row != 5 else "green"
                writer.writerow([number, name, label, split.paths[row], "flipped", "same"])
    node = json.loads((path / "zarr.json").read_bytes())
    figures = {"groups": len(groups), "pictures": sum(map(len, groups)), "labels_differ": 1, "leaks": 2}
    node["attributes"]["copies"] = figures
    for key in ("crc32", "reports"):  # as in a dataset of 0.1.0
        del node["attributes"][key]
    (path / "zarr.json").write_text(json.dumps(node))
    return path


def rows_of(split: Split, label: int) -> list[int]:
    return [int(row) for row in np.flatnonzero(split.labels == label)]


def test_groups_are_shown_by_priority(logpose: Logpose, data_path: Path, run_copy: Path, tmp_path: Path) -> None:
    data = Dataset.open(data_path)
    train, val = rows_of(data.train, 2), rows_of(data.val, 2)
    other = rows_of(data.train, 0)[0]
    groups = [
        [("train", row) for row in train[:3]],
        [("train", train[3]), ("val", val[0])],
        [("train", row) for row in train[4:12]],
        [("train", other), ("train", train[13])],
    ]
    path = with_duplicates(data_path, tmp_path / "d.zarr", groups)
    assert [group.number for group in select_groups(path, 3)] == [4, 2, 3]
    assert logpose("report", run_copy, "--dataset", path).code == 0
    page = read_report(run_copy)
    assert "1 group of near-duplicates has more than one label." in page.text
    assert f"2 of the {data.val.rows} validation images have a near-duplicate in the training split" in page.text
    section = page.section("near-duplicates")
    assert "15 images in 4 groups" in section.text
    headings = [Page(found).text for found in re.findall("<h3>(.*?)</h3>", section.html, re.DOTALL)]
    assert headings[0] == "Group 4 2 images labels differ" and headings[1] == "Group 2 2 images in both splits"
    images = section.all("img")
    assert len(images) == 2 + 2 + 6 + 3, "six of the group of eight"
    by_path = dict.fromkeys(data.train.paths, data.train) | dict.fromkeys(data.val.paths, data.val)
    for image in images:
        assert nearest_path(image["src"], by_path[image["alt"]]) == image["alt"]
    (path / DUPLICATES_FILE).unlink()
    assert logpose("report", run_copy, "--dataset", path).code == 0
    assert "duplicates.csv, is missing" in read_report(run_copy).section("near-duplicates").text
    (path / DUPLICATES_FILE).write_text("a,b\n1,2\n")
    assert str(path / DUPLICATES_FILE) in logpose("report", run_copy, "--dataset", path).error
