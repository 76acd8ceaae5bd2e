"""Depth and limit of pixels: the same in build, train and classify."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import logpose as interface
from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError
from tests.jobs.classification.tables import read
from tests.jobs.conftest import RECIPE, Logpose


def draw_deep(root: Path, low: float, high: float) -> Path:
    """Two classes of float images, of vertical and of horizontal bars with values from low to high."""
    rng = np.random.default_rng(0)
    for axis, name in enumerate(("across", "down")):
        (root / name).mkdir(parents=True)
        for number in range(10):
            bars = rng.random((1, 16)).repeat(16, 0)  # (16, 16)
            if number == 0:  # only: otherwise a depth for each image would be the same
                bars[:, :2] = 0, 1
            values = low + (bars.T if axis else bars) * (high - low)  # (16, 16)
            Image.fromarray(values.astype(np.float32)).save(root / name / f"{number}.tif")
    return root


def test_model_decodes_as_its_dataset_did(logpose: Logpose, tmp_path: Path) -> None:
    images, data, run = draw_deep(tmp_path / "images", -20, 80), tmp_path / "d.zarr", tmp_path / "run"
    built = logpose("build", images, data, "--size", 16)
    assert "values of more than 8 bits: -20 becomes black, 80 white; --depth sets other values" in built.out
    assert "nearly one colour" not in built.out
    assert logpose("train", data, run, *RECIPE, "--epochs", 1).code == 0
    assert load_checkpoint(run / "model.safetensors").card.depth == (-20, 80)
    assert logpose("classify", images, run, tmp_path / "files.csv").code == 0
    assert logpose("classify", data, run, tmp_path / "rows.csv").code == 0
    files, rows = read(tmp_path / "files.csv"), read(tmp_path / "rows.csv")
    assert files == rows
    loaded = interface.load(run)
    for name, _, label, probability, _ in files[1:]:
        prediction = loaded.predict(images / name)
        assert (prediction.label, f"{prediction.probability:.6f}") == (label, probability)
    assert logpose("build", images, tmp_path / "other.zarr", "--size", 16, "--depth", "0..80").code == 0
    assert logpose("classify", tmp_path / "other.zarr", run, tmp_path / "no.csv").error == (
        "error: expected images of 16×16 (pad, depth -20..80), as the model was trained on, found 16×16 (pad, depth"
        f" 0..80) in {tmp_path / 'other.zarr'}; classify its source instead, {images}"
    )


def test_damaged_depth_of_a_model_is_refused(model: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(model)
    save_checkpoint(tmp_path / "m", replace(checkpoint.card, depth=(5.0, 5.0)), checkpoint.tensors, {})
    with pytest.raises(ModelFileError, match="damaged header"):
        load_checkpoint(tmp_path / "m")


def test_model_of_eight_bits_has_no_depth_in_its_file(model: Path) -> None:
    assert load_checkpoint(model).card.depth is None
    assert b"depth" not in model.read_bytes()[:5000]


def test_depth_may_begin_with_a_minus_and_flat_images_are_reported(logpose: Logpose, tmp_path: Path) -> None:
    images = draw_deep(tmp_path / "images", 0, 5)
    flat = logpose("build", images, tmp_path / "d.zarr", "--size", 16, "--depth", "-100..900")
    assert flat.code == 0
    assert re.search(r"nearly one colour: (\d+) of \1 images looked at", flat.out)
    again = interface.build(images, tmp_path / "d.zarr", size=16, depth=(-100, 900), quiet=True)
    assert again.attributes.depth == (-100, 900)
    assert interface.build(images, tmp_path / "e.zarr", size=16, depth=3, quiet=True).attributes.depth == (0, 7)


@pytest.mark.parametrize("wrong", [1.5, (1,), "x", (2, 1), True])
def test_wrong_depth_is_an_error(wrong: object, tmp_path: Path) -> None:
    with pytest.raises(interface.LogposeError, match="depth"):
        interface.build(tmp_path, tmp_path / "d.zarr", depth=wrong)  # type: ignore[arg-type]


def test_large_image_needs_the_option(logpose: Logpose, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("1", (12_000, 9_000)).save(tmp_path / "in" / "a.png")
    assert logpose("classify", tmp_path / "in", model, tmp_path / "a.csv").code == 0
    assert "expected at most 89,478,485 pixels" in read(tmp_path / "a.csv")[1][4]
    assert logpose("classify", tmp_path / "in", model, tmp_path / "b.csv", "--max-pixels", "108M").code == 0
    assert read(tmp_path / "b.csv")[1][1] == "ok"
    with pytest.raises(interface.LogposeError, match="raise --max-pixels"):
        interface.load(model).predict(tmp_path / "in" / "a.png")
    assert interface.load(model, max_pixels=108_000_000).predict(tmp_path / "in" / "a.png").label
