"""Classifications whose images or dataset cannot be read for a while, or change meanwhile."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cnn.checkpoint import load_checkpoint
from cnn.inference.predictor import Predictor
from jobs.classification import classify, inputs, task
from jobs.options import ClassifyOptions
from pipeline.dataset.store import Dataset
from pipeline.errors import DatasetChangedError, DecodeError
from tests.jobs.classification.tables import read
from tests.jobs.conftest import Logpose, draw_classes


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.faults.PAUSES", (0, 0))
    monkeypatch.setattr(inputs, "FILES_PER_PART", 16)
    monkeypatch.setattr(inputs, "ROWS_PER_PART", 16)


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def in_call(number: int, patch: pytest.MonkeyPatch, action: object) -> None:
    """Call `action` in the computation of this batch, counted from 1."""
    whole, calls = Predictor.probabilities, 0

    def counted(self: Predictor, pixels: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == number:
            action()  # type: ignore[operator]
        return whole(self, pixels)

    patch.setattr(Predictor, "probabilities", counted)


def test_images_that_go_away_stop_the_job_and_it_resumes(
    logpose: Logpose, images: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out, away = tmp_path / "whole.csv", tmp_path / "out.csv", tmp_path / "away"
    options = ("--batch-size", 8, "--workers", 1)
    assert logpose("classify", images, model, whole, *options).code == 0
    with monkeypatch.context() as patch:
        in_call(4, patch, lambda: images.rename(away))
        outcome = logpose("classify", images, model, out, *options)
    assert outcome.code == 1
    assert "found no such file or directory, nor anything else in its folder: check that its drive" in outcome.error
    assert not out.exists()
    away.rename(images)
    assert logpose("classify", images, model, out, *options).code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_link_to_nothing_is_a_row(logpose: Logpose, images: Path, model: Path, tmp_path: Path) -> None:
    (images / "blue" / "lost.png").symlink_to(tmp_path / "not mounted" / "a.png")
    outcome = logpose("classify", images, model, tmp_path / "out.csv", "--workers", 2)
    assert (outcome.code, outcome.err) == (0, "")
    (row,) = [row for row in read(tmp_path / "out.csv") if row[1] == "error"]
    assert row == ["blue/lost.png", "error", "", "", "unreadable: a link to nothing"]


def test_folder_that_may_not_be_entered_is_a_row(
    logpose: Logpose, images: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == images / "green":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    outcome = logpose("classify", images, model, tmp_path / "out.csv")
    assert (outcome.code, outcome.err) == (0, "")
    assert "40 images classified, 1 file could not be read" in outcome.out
    assert "note: 1 folder may not be entered: a row each, whose name ends in /" in outcome.out
    rows = read(tmp_path / "out.csv")
    assert [row[0] for row in rows[1:] if row[1] == "error"] == ["green/"]
    assert [row[0] for row in rows[1:]] == sorted(row[0] for row in rows[1:])


def test_rerun_looks_again_at_what_could_not_be_opened(
    logpose: Logpose, images: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    (images / "blue" / "broken.png").write_bytes(b"\x89PNG")
    options = ("--batch-size", 8, "--workers", 1)
    assert logpose("classify", images, model, whole, *options).code == 0
    decode = task.decode_image

    def denied(path: str, *rest: object) -> object:
        if path.endswith("blue/003.png"):
            raise DecodeError("unreadable", "permission denied")
        return decode(path, *rest)  # type: ignore[arg-type]

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(task, "decode_image", denied)
        in_call(7, patch, interrupt)
        assert logpose("classify", images, model, out, *options).code == 130
    parts = [path.read_text() for path in sorted((tmp_path / "out.csv.parts").glob("part-*.csv"))]
    assert "blue/003.png,error,,,unreadable: permission denied\n" in parts[0]
    decoded: list[str] = []
    monkeypatch.setattr(task, "decode_image", lambda path, *rest: decoded.append(path) or decode(path, *rest))
    assert logpose("classify", images, model, out, *options).code == 0
    assert len(decoded) == 61 - 16 * (len(parts) - 1), "only the part with that file is done again"
    assert out.read_bytes() == whole.read_bytes()


def test_file_that_only_a_worker_cannot_open_stops_the_job(
    logpose: Logpose, images: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with older copies of the images, or with other permissions."""
    out, decode, denied = tmp_path / "out.csv", task.decode_image, True
    last = sorted(images.rglob("*.png"))[-1]
    gone = images / "link to nothing.png"
    gone.symlink_to("nothing")

    def decode_on_worker(path: str, *rest: object) -> object:
        if denied and path == str(last):
            raise DecodeError("unreadable", "permission denied")
        return decode(path, *rest)  # type: ignore[arg-type]

    def in_order(function: Callable[[object], object], items: Iterable[object], address: str) -> Iterator[object]:
        yield from map(function, items)

    monkeypatch.setattr(task, "decode_image", decode_on_worker)
    monkeypatch.setattr(classify, "in_order_on_cluster", in_order)
    monkeypatch.setattr("jobs.classification.worker.worker_address", lambda: "tcp://a:2")
    arguments = ("classify", images, model, out, "--scheduler", "tcp://a:1")
    outcome = logpose(*arguments)
    assert outcome.code == 1 and not out.exists()
    assert f"{last} on each worker as on this machine, found permission denied on one: give all" in outcome.error
    denied = False
    assert logpose(*arguments).code == 0
    assert [row[0] for row in read(out) if row[1] == "error"] == [gone.name]


def test_complete_table_is_looked_at_again(
    logpose: Logpose, images: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At what could not be opened, and only at that."""
    out, decode = tmp_path / "out.csv", task.decode_image
    (images / "blue" / "broken.png").write_bytes(b"\x89PNG")
    (images / "blue" / "lost.png").symlink_to(tmp_path / "not mounted" / "a.png")

    def denied(path: str, *rest: object) -> object:
        if path.endswith(("blue/003.png", "red/007.png")):
            raise DecodeError("unreadable", "permission denied")
        return decode(path, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(task, "decode_image", denied)
        assert logpose("classify", images, model, out).code == 0
    before = out.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "can_be_read", lambda path: False)
        outcome = logpose("classify", images, model, out)
        assert "58 images classified, 4 files could not be read" in outcome.out
        assert (outcome.code, outcome.err) == (0, "") and "already complete" in outcome.out
    outcome = logpose("classify", images, model, out)
    assert outcome.code == 2 and out.read_bytes() == before
    assert "lacks 2 files that could not be read then, and can be now (first blue/003.png)" in outcome.error
    assert not (tmp_path / "out.csv.parts").exists()
    outcome = logpose("classify", images, model, out, "--overwrite")
    assert outcome.code == 0 and "60 images classified, 2 files could not be read" in outcome.out
    assert logpose("classify", images, model, out).code == 0, "what is broken, or still missing, is no reason"


def test_jump_in_the_share_of_failures_is_said(
    logpose: Logpose, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "many"
    draw_classes(root, 60, ("a", "b"))
    for path in (root / "b").iterdir():
        path.write_bytes(b"")
    outcome = logpose("classify", root, model, tmp_path / "out.csv", "--workers", 1)
    assert outcome.code == 0
    assert "could not be read, of the next" in outcome.out
    assert "has a drive or a network failed meanwhile?" in outcome.out


@pytest.fixture
def another(logpose: Logpose, tmp_path: Path) -> Path:
    """A dataset of the same shape and names with other pixels."""
    root = draw_classes(tmp_path / "other", 20, ("red", "blue", "green"))
    assert logpose("build", root, tmp_path / "other.zarr", "--size", 16, "--val", 0.2).code == 0
    return tmp_path / "other.zarr"


@pytest.mark.parametrize("batch", [2, 8])  # of 6 of the training split, and 2 of validation
def test_dataset_that_is_replaced_stops_the_job(
    logpose: Logpose, dataset: Path, another: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:  # fmt: skip
    data, out, expected = tmp_path / "data.zarr", tmp_path / "out.csv", tmp_path / "expected.csv"
    shutil.copytree(dataset, data)
    assert logpose("classify", another, model, expected).code == 0

    def swap() -> None:
        data.rename(tmp_path / "before.zarr")
        another.rename(data)

    with monkeypatch.context() as patch:
        in_call(batch, patch, swap)
        outcome = logpose("classify", data, model, out, "--batch-size", 8, "--workers", 1)
    assert outcome.code == 1
    assert f"expected the dataset at {data} to stay the same while it is read, found another one" in outcome.error
    assert not out.exists()
    assert logpose("classify", data, model, out, "--overwrite").code == 0, "opened again in this process"
    assert out.read_bytes() == expected.read_bytes()


def test_worker_does_not_read_another_dataset(dataset: Path, another: Path, model: Path) -> None:
    """Tasks name the dataset that the classification began with: a worker may open it later."""
    begun = Dataset.open(dataset).train.generation
    assert begun is not None
    settings = task.TaskSettings(model, load_checkpoint(model).digest, ClassifyOptions(device="cpu"))
    with pytest.raises(DatasetChangedError, match=f"expected the dataset at {another} to stay the same"):
        task.classify_task(settings, task.RowTask(another, begun, "train", 0, ["a.png"]))
