"""A CSV with a row for every file, whatever the files are called and whatever is in them."""

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from cnn.backend import pick_backend
from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.predict import Predictor
from jobs import classify as job
from pipeline.store import Dataset
from tests.jobs.conftest import CLASSES, Logpose, draw_picture

HEADER = ["filename", "status", "label", "prob", "error"]
ODD_NAMES = ("comma, here.png", 'quo"te.png', "new\nline.png", " space .png", "ünïcödé ルフィ.png", "=1+1.png", "#.png")


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Pictures of all sorts of names in folders, some of them broken."""
    root = tmp_path / "mixed"
    for number, name in enumerate(ODD_NAMES):
        draw_picture(root / name, number % 3, number)
    draw_picture(root / "deep" / "er" / "still.png", 1, 100)
    (root / "broken.jpg").write_bytes(b"")
    (root / "deep" / "notes.txt").write_text("no picture")
    (root / "deep" / "cut.png").write_bytes((root / "#.png").read_bytes()[:200])
    return root


def found(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_one_row_for_each_file_sorted_by_path(
    logpose: Logpose, mixed: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results" / "out.csv"
    outcome = logpose("classify", mixed, model, out, "--topk", 3, "--batch-size", 4)
    assert (outcome.code, outcome.err) == (0, "")
    assert "8 pictures classified, 3 files could not be read (status 'error' in the CSV)" in outcome.out
    header, *rows = table(out)
    assert header == [*HEADER, "label_2", "prob_2", "label_3", "prob_3"]
    assert [row[0] for row in rows] == found(mixed)
    assert {len(row) for row in rows} == {9}
    for name, status, label, prob, error, *more in rows:
        if name in ("broken.jpg", "deep/notes.txt", "deep/cut.png"):
            assert (status, label, prob, more) == ("error", "", "", [""] * 4)
            assert error
        else:
            assert (status, error) == ("ok", "")
            assert {label, more[0], more[2]} == set(CLASSES)
            probs = [float(value) for value in (prob, more[1], more[3])]
            assert probs == sorted(probs, reverse=True)
            assert sum(probs) == pytest.approx(1, abs=2e-6)
    assert not out.with_name("out.csv.parts").exists()
    assert b"\r" not in out.read_bytes()


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system takes only UTF-8")
def test_names_that_are_no_utf8_survive(logpose: Logpose, model: Path, tmp_path: Path) -> None:
    draw_picture(tmp_path / "odd" / "a.png", 0, 0)
    os.rename(tmp_path / "odd" / "a.png", os.fsencode(tmp_path / "odd") + b"/caf\xe9.png")  # noqa: PTH104
    assert logpose("classify", tmp_path / "odd", model, tmp_path / "out.csv").code == 0
    assert b"\ncaf\xe9.png,ok," in (tmp_path / "out.csv").read_bytes()


def test_a_picture_has_the_same_probabilities_from_its_file_and_from_the_dataset(
    logpose: Logpose, pictures: Path, dataset: Path, model: Path, tmp_path: Path
) -> None:
    assert logpose("classify", pictures, model, tmp_path / "out.csv", "--device", "cpu").code == 0
    by_name = {row[0]: row for row in table(tmp_path / "out.csv")}
    val = Dataset.open(dataset).val
    probabilities = Predictor(model, pick_backend("cpu")).probabilities(val.read(0, val.rows))  # (N, C)
    for path, probs in zip(val.paths, probabilities, strict=True):
        assert by_name[path][2] == CLASSES[int(np.argmax(probs))]
        assert float(by_name[path][3]) == pytest.approx(float(probs.max()), abs=2e-6)


def test_one_picture_alone_and_a_run_folder_as_model(
    logpose: Logpose, pictures: Path, trained: Path, tmp_path: Path
) -> None:
    one = pictures / "red" / "000.png"
    assert logpose("classify", one, trained, tmp_path / "out.csv").code == 0
    header, row = table(tmp_path / "out.csv")
    assert header == HEADER
    assert row[0] == "000.png"


def test_a_batch_without_any_readable_file(logpose: Logpose, model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for number in range(5):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"")
    outcome = logpose("classify", tmp_path / "broken", model, tmp_path / "out.csv", "--batch-size", 2)
    assert outcome.code == 0
    assert "0 pictures classified, 5 files could not be read" in outcome.out
    assert [row[1] for row in table(tmp_path / "out.csv")[1:]] == ["error"] * 5


def test_results_among_the_pictures_are_not_pictures(
    logpose: Logpose, pictures: Path, model: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(pictures, tmp_path / "copy"))
    out = root / "out.csv"
    assert logpose("classify", root, model, out).code == 0
    assert logpose("classify", root, model, out, "--overwrite").code == 0
    assert len(table(out)) == 61


# Going on -----------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """800 names for a few pictures."""
    root = tmp_path / "many"
    for number in range(10):
        draw_picture(root / f"{number:04}.png", number % 3, number)
    for number in range(10, 800):
        os.link(root / f"{number % 10:04}.png", root / f"{number:04}.png")
    return root


def test_a_killed_classification_goes_on_to_the_same_file(
    logpose: Logpose, many: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "ROWS_PER_PART", 32)
    killed, calm = tmp_path / "killed.csv", tmp_path / "calm.csv"
    arguments = ["classify", str(many), str(model), str(killed), "--batch-size", "16", "--device", "cpu"]
    script = f"import jobs.classify as c; c.ROWS_PER_PART = 32; from jobs.cli import main; main({arguments!r})"
    parts = tmp_path / "killed.csv.parts"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 300
        while not (parts / "part-000002.csv").exists():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not killed.exists()
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("part-*.csv")}

    computed = []
    whole = Predictor.probabilities
    monkeypatch.setattr(Predictor, "probabilities", lambda s, x: computed.append(len(x)) or whole(s, x))
    outcome = logpose(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"going on: {32 * len(finished):,} of them were classified before" in outcome.out
    assert sum(computed) == 800 - 32 * len(finished)
    assert logpose(*arguments[:3], calm, *arguments[4:]).code == 0
    assert killed.read_bytes() == calm.read_bytes()


@pytest.fixture
def begun(logpose: Logpose, pictures: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OUT.csv of a classification that was interrupted with some parts done; the pictures are beside it."""
    shutil.copytree(pictures, tmp_path / "pictures")
    monkeypatch.setattr(job, "ROWS_PER_PART", 16)
    calls = []

    def interrupted(self: Predictor, images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, images)

    whole = Predictor.probabilities
    out = tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "probabilities", interrupted)
        outcome = logpose("classify", tmp_path / "pictures", model, out, "--batch-size", 16)
    assert (outcome.code, outcome.err) == (130, "interrupted: run the same command again to go on\n")
    assert not out.exists()
    assert len(list((tmp_path / "out.csv.parts").glob("part-*.csv"))) == 2
    return out


@pytest.mark.parametrize("change", ["model", "files", "--topk", "--batch-size"])
def test_parts_of_something_else_are_refused(
    logpose: Logpose, begun: Path, model: Path, tmp_path: Path, change: str
) -> None:
    arguments = ["--topk", 2 if change == "--topk" else 1, "--batch-size", 8 if change == "--batch-size" else 16]
    if change == "model":
        checkpoint = load_checkpoint(model)
        model = tmp_path / "other.safetensors"
        save_checkpoint(model, checkpoint.card, checkpoint.tensors, {"another": "training"})
    if change == "files":
        draw_picture(tmp_path / "pictures" / "red" / "000.png", 0, 777)
    outcome = logpose("classify", tmp_path / "pictures", model, begun, *arguments)
    assert outcome.code == 2
    assert f"holds an unfinished classification with other {change}; remove it, give --overwrite" in outcome.error
    outcome = logpose("classify", tmp_path / "pictures", model, begun, *arguments, "--overwrite")
    assert outcome.code == 0
    assert "going on" not in outcome.out
    assert len(table(begun)) == 61


def test_a_finished_csv_is_not_overwritten_without_being_told(
    logpose: Logpose, pictures: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    outcome = logpose("classify", pictures, model, out)
    assert outcome.code == 2
    assert "is there already; give --overwrite" in outcome.error
    assert out.read_text() == "mine"
    assert logpose("classify", pictures, model, out, "--overwrite").code == 0
    assert len(table(out)) == 61


def test_a_full_disk_leaves_no_csv_and_the_rerun_goes_on(
    logpose: Logpose, begun: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arguments = ("classify", tmp_path / "pictures", model, begun, "--batch-size", 16)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        outcome = logpose(*arguments)
    assert outcome.code == 1
    assert "no space left on device" in outcome.error
    assert not begun.exists()
    outcome = logpose(*arguments)
    assert outcome.code == 0
    assert "going on: 32 of them were classified before" in outcome.out
    assert len(table(begun)) == 61


# Refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "no model file at"),
        ("truncated", "may be truncated"),
        ("flipped bit", "is damaged: its tensors do not match their checksum"),
        ("not ours", "is a safetensors file but not"),
        ("no safetensors", "is not a whole model file"),
        ("other shape", "parameter head.weight: expected shape"),
        ("lacks one", "expected a parameter head.weight of shape"),
        ("unknown model", "no model is called 'resnet8'; did you mean"),
    ],
)
def test_a_model_that_cannot_be_used(
    logpose: Logpose, pictures: Path, model: Path, tmp_path: Path, damage: str, message: str
) -> None:
    broken = Path(shutil.copy(model, tmp_path / "broken.safetensors"))
    content = bytearray(model.read_bytes())
    checkpoint = load_checkpoint(model)
    tensors = dict(checkpoint.tensors)
    if damage == "missing":
        broken.unlink()
    elif damage == "truncated":
        broken.write_bytes(content[: len(content) // 2])
    elif damage == "flipped bit":
        content[-10] ^= 1
        broken.write_bytes(content)
    elif damage == "not ours":
        save_file({"weight": np.zeros(3)}, broken)
    elif damage == "no safetensors":
        shutil.copy(pictures / "red" / "000.png", broken)
    elif damage == "other shape":
        tensors["head.weight"] = tensors["head.weight"][:, :2]
        save_checkpoint(broken, checkpoint.card, tensors, {})
    elif damage == "lacks one":
        del tensors["head.weight"]
        save_checkpoint(broken, checkpoint.card, tensors, {})
    else:
        object.__setattr__(checkpoint.card, "model", "resnet8")
        save_checkpoint(broken, checkpoint.card, tensors, {})
    outcome = logpose("classify", pictures, broken, tmp_path / "out.csv")
    assert outcome.code == 2
    assert message in outcome.error
    assert not list(tmp_path.glob("out.csv*"))


@pytest.mark.parametrize(
    ("images", "out", "options", "message"),
    [
        ("nowhere", "out.csv", (), "found nothing at"),
        ("empty", "out.csv", (), "found no file in"),
        ("some", "empty", (), "is a folder; give the name of a CSV file"),
        ("some", "out.csv", ("--topk", 4), "--topk 4 asks for more labels than there are:"),
        ("some", "out.csv", ("--topk", 0), "invalid value for '--topk'"),
        ("some", "out.csv", ("--batch-size", 0), "invalid value for '--batch-size'"),
        ("some", "out.csv", ("--scheduler", "tcp://nobody:1"), "--scheduler"),
        ("some", "some/a.png/out.csv", (), "check the path"),
    ],
)
def test_arguments_that_cannot_be_used(
    logpose: Logpose, model: Path, tmp_path: Path, images: str, out: str, options: tuple[object, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    draw_picture(tmp_path / "some" / "a.png", 0, 0)
    outcome = logpose("classify", tmp_path / images, model, tmp_path / out, *options)
    assert outcome.code == 2
    assert message in outcome.error


def test_pictures_of_another_size_are_brought_to_the_models(
    logpose: Logpose, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "wide").mkdir()
    Image.new("L", (300, 20)).save(tmp_path / "wide" / "grey.gif")
    assert logpose("classify", tmp_path / "wide", model, tmp_path / "out.csv").code == 0
    assert table(tmp_path / "out.csv")[1][1] == "ok"
