"""The table in the folder that is classified, by any name; names that a dataset escapes; a model that changes."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.inference.predictor import Predictor
from jobs.classification import inputs
from logpose.common.errors import escaped, unescaped
from tests.jobs.classification.tables import read
from tests.jobs.conftest import Logpose, draw_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        draw_image(tmp_path / "real" / "flat" / f"{number:03}.png", number % 3, number)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    return tmp_path


@pytest.mark.parametrize(
    ("images", "out"),
    [
        ("real/flat", "real/flat/out.csv"),
        ("real/flat", "link/flat/out.csv"),
        ("link/flat", "real/flat/out.csv"),
        ("real/flat", "real/flat/../flat/out.csv"),
        ("real/../link", "real/flat/out.csv"),
        ("real", "table"),  # a link to real/flat/out.csv
    ],
)
def test_table_in_its_own_folder_is_not_classified(
    logpose: Logpose, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, images: str, out: str
) -> None:
    (folder / "table").symlink_to("real/flat/out.csv")
    monkeypatch.setattr(inputs, "FILES_PER_PART", 16)
    whole, calls = Predictor.probabilities, []

    def interrupted(self: Predictor, pixels: np.ndarray) -> Any:
        calls.append(len(pixels))
        if len(calls) == 3:
            while not list((folder / "real" / "flat").glob("out.csv.parts/part-*.csv")):  # written by another thread
                time.sleep(0.01)
            raise KeyboardInterrupt
        return whole(self, pixels)

    arguments = ("classify", folder / images, model, folder / out, "--batch-size", 16, "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "probabilities", interrupted)
        assert logpose(*arguments).code == 130
    assert (folder / "real" / "flat" / "out.csv.parts").is_dir()
    for _ in range(2):  # it resumes; and it is complete
        outcome = logpose(*arguments)
        assert (outcome.code, outcome.err) == (0, "")
    assert [row[1] for row in read(folder / "real" / "flat" / "out.csv")] == ["status", *["ok"] * 40]


ODD = ["a\nb.png", "tab\t.png", "\x7f.png", "\u2028.png", "\\x0a.png", "\\x5cx0a.png", "\\n.png", "\\udce9.png", "\\"]
ODD += ["caf\udce9.png", "\udcff\r.png"] if sys.platform == "linux" else []


def test_escaped_names_are_found_again() -> None:
    for name in (*ODD, "plain", "C:\\x41"):
        text = escaped(name)
        assert unescaped(text) == name and text.isprintable() and text.encode()
    assert escaped("C:\\data\\x41.png") == "C:\\data\\x41.png"  # most names with a backslash stay as they are


def test_table_of_a_dataset_has_the_exact_names(
    logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path
) -> None:
    """Byte for byte that of the folder, also in its order and for a file that is left out."""
    root = Path(shutil.copytree(image_folder, tmp_path / "images"))
    for number, name in enumerate(ODD):
        shutil.copy(root / "red" / f"{number:03}.png", os.fsencode(root / "red") + b"/" + os.fsencode(name))
    for name in ("broken\n.png", "broken\\x0a.png"):
        (root / "blue" / name).write_bytes(b"")
    assert logpose("build", root, tmp_path / "d.zarr", "--size", 16).code == 0
    for source, out in ((root, "folder.csv"), (tmp_path / "d.zarr", "dataset.csv")):
        assert logpose("classify", source, model, tmp_path / out).code == 0
    assert (tmp_path / "folder.csv").read_bytes() == (tmp_path / "dataset.csv").read_bytes()
    assert len(read(tmp_path / "dataset.csv")) == 1 + 60 + len(ODD) + 2


def test_model_that_is_replaced_meanwhile_is_not_mixed_in(
    logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows and the fingerprint are of the file that was read; a rerun with the other model is refused."""
    monkeypatch.setattr(inputs, "FILES_PER_PART", 16)
    path, other = tmp_path / "model", tmp_path / "other"
    shutil.copy(model, path)
    found = load_checkpoint(model)
    tensors = found.tensors | {"head.bias": found.tensors["head.bias"][::-1] * -3}
    save_checkpoint(other, found.card, tensors, {})
    assert logpose("classify", image_folder, path, tmp_path / "expected.csv").code == 0
    whole, load, calls = Predictor.probabilities, Predictor.__init__, []

    def replacing_load(self: Predictor, *arguments: Any) -> None:
        load(self, *arguments)
        shutil.copy(other, path)  # right after the file was read

    def interrupted(self: Predictor, pixels: np.ndarray) -> Any:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, pixels)

    arguments = ("classify", image_folder, path, tmp_path / "out.csv", "--batch-size", 16, "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__init__", replacing_load)
        patch.setattr(Predictor, "probabilities", interrupted)
        assert logpose(*arguments).code == 130
    assert "holds an unfinished classification with other model" in logpose(*arguments).error
    shutil.copy(model, path)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__init__", replacing_load)
        outcome = logpose(*arguments)
    assert outcome.code == 0
    assert f"note: {path} has changed meanwhile; the table is of the model as it was at the start" in outcome.out
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()
