"""Interrupted, killed and concurrent classifications."""

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

from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.inference.predictor import Predictor
from jobs.classification import inputs
from logpose.common.locks import exclusive_lock
from tests.jobs.classification.tables import names_in, read
from tests.jobs.conftest import Logpose, draw_image


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """800 names for a few images."""
    root = tmp_path / "many"
    for number in range(10):
        draw_image(root / f"{number:04}.png", number % 3, number)
    for number in range(10, 800):
        os.link(root / f"{number % 10:04}.png", root / f"{number:04}.png")
    return root


def test_killed_classification_resumes_to_the_same_bytes(
    logpose: Logpose, many: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "FILES_PER_PART", 32)
    killed, whole_run = tmp_path / "killed.csv", tmp_path / "whole.csv"
    arguments = ["classify", str(many), str(model), str(killed), "--batch-size", "16", "--device", "cpu"]
    script = (
        "from jobs import cli; from jobs.classification import inputs; inputs.FILES_PER_PART = 32;"
        f" cli.main({arguments!r})"
    )
    parts = tmp_path / "killed.csv.parts"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 300
        while not list(parts.glob("part-000002-*.csv")):
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
    assert f"resuming: {32 * len(finished):,} files already classified" in outcome.out
    assert sum(computed) == 800 - 32 * len(finished)
    assert logpose(*arguments[:3], whole_run, *arguments[4:]).code == 0
    assert killed.read_bytes() == whole_run.read_bytes()


@pytest.fixture
def begun(logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OUT.csv of a classification that was interrupted with two parts finished; the images are in the same folder."""
    shutil.copytree(image_folder, tmp_path / "images")
    monkeypatch.setattr(inputs, "FILES_PER_PART", 16)
    out = tmp_path / "out.csv"
    calls = []

    def interrupted(self: Predictor, images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        limit = time.monotonic() + 60
        while len(calls) == 3 and time.monotonic() < limit:  # until the first two parts are written
            if len(list((tmp_path / "out.csv.parts").glob("part-*.csv"))) == 2:
                raise KeyboardInterrupt
            time.sleep(0.005)
        return whole(self, images)

    whole = Predictor.probabilities
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "probabilities", interrupted)
        outcome = logpose("classify", tmp_path / "images", model, out, "--batch-size", 16, "--workers", 1)
    assert (outcome.code, outcome.err) == (130, "interrupted: run the same command again to resume\n")
    assert not out.exists()
    return out


@pytest.mark.parametrize(
    "change", ["model", "--topk", "--views", "--threshold", "other files", "a changed file", "fewer files"]
)
def test_parts_of_another_classification_are_rejected(
    logpose: Logpose, begun: Path, model: Path, tmp_path: Path, change: str
) -> None:
    root, rows = tmp_path / "images", 60
    values = {"--topk": (1, 2), "--views": ("none", "mirror"), "--threshold": (None, 0.5)}
    options: tuple[object, ...] = (change, values[change][1]) if change in values else ()
    what = f"{change} ({values[change][0]}, now {values[change][1]})" if change in values else change
    message = f"holds an unfinished classification with other {what}; remove it, give --overwrite"
    if change == "model":
        checkpoint = load_checkpoint(model)
        model = tmp_path / "other.safetensors"
        save_checkpoint(model, checkpoint.card, checkpoint.tensors, {"another": "training"})
    elif not options:
        message = "holds an unfinished classification of other files"
        if change == "other files":
            draw_image(root / "aaa.png", 0, 777)
            rows = 61
        elif change == "a changed file":
            draw_image(root / "blue" / "000.png", 0, 777)
        else:
            shutil.rmtree(root / "green")
            shutil.rmtree(root / "red")
            for number in range(10, 20):
                (root / "blue" / f"{number:03}.png").unlink()
            rows = 10
    outcome = logpose("classify", root, model, begun, *options)
    assert outcome.code == 2
    assert message in outcome.error
    outcome = logpose("classify", root, model, begun, *options, "--overwrite")
    assert outcome.code == 0
    assert "resuming" not in outcome.out
    assert len(read(begun)) == rows + 1


def test_resuming_with_other_threads_and_batches_gives_the_same_bytes(
    logpose: Logpose, begun: Path, model: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.csv"
    assert logpose("classify", tmp_path / "images", model, whole, "--batch-size", 7, "--workers", 1).code == 0
    outcome = logpose("classify", tmp_path / "images", model, begun, "--batch-size", 5, "--workers", 3)
    assert outcome.code == 0
    assert "resuming: 32 files already classified" in outcome.out
    assert begun.read_bytes() == whole.read_bytes()


def test_second_classification_into_the_same_table_is_rejected(
    logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path
) -> None:
    with exclusive_lock(tmp_path / ".out.csv.lock", "test"):
        outcome = logpose("classify", image_folder, model, tmp_path / "out.csv")
        assert outcome.code == 2
        assert "expected to be the only classification into" in outcome.error
        assert not (tmp_path / "out.csv").exists()
    assert logpose("classify", image_folder, model, tmp_path / "out.csv").code == 0
    assert names_in(tmp_path) == ["out.csv"]


def test_finished_table_needs_overwrite(logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    outcome = logpose("classify", image_folder, model, out)
    assert outcome.code == 2
    assert "already exists; give --overwrite" in outcome.error
    assert out.read_text() == "mine"
    assert logpose("classify", image_folder, model, out, "--overwrite").code == 0
    assert len(read(out)) == 61


def test_full_disk_leaves_no_table_and_the_rerun_resumes(
    logpose: Logpose, begun: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arguments = ("classify", tmp_path / "images", model, begun)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        outcome = logpose(*arguments)
    assert outcome.code == 1
    assert "no space left on device" in outcome.error
    assert not begun.exists()
    outcome = logpose(*arguments)
    assert outcome.code == 0
    assert "resuming: 32 files already classified" in outcome.out
    assert len(read(begun)) == 61
