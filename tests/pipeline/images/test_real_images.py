"""Decoding of unusual real images; skipped unless LOGPOSE_DATA names the folder with odd-images.tar.xz."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DecodeError
from pipeline.images.decode import decode_pixels


@pytest.fixture(scope="module")
def unusual_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("LOGPOSE_DATA")
    if folder is None:
        pytest.skip("LOGPOSE_DATA is not set: it names the folder with odd-images.tar.xz")
    unpacked = tmp_path_factory.mktemp("unusual")
    with tarfile.open(Path(folder) / "odd-images.tar.xz") as archive:
        archive.extractall(unpacked, filter="data")
    return unpacked


def test_valid_images_all_decode(unusual_images: Path) -> None:
    files = sorted((unusual_images / "valid").iterdir())
    assert len(files) > 70
    for file in files:
        pixels = decode_pixels(file, (64, 64), "pad")
        # Only PngSuite's ftbbn0g01.png is blank: a transparent image on white.
        assert pixels.std() > 1 or file.name == "ftbbn0g01.png", f"{file.name} is blank"


@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_every_orientation_is_decoded_upright(unusual_images: Path, name: str) -> None:
    # The photographs differ by the digit drawn in the middle, and by JPEG noise.
    images = [
        decode_pixels(unusual_images / "exif-orientation" / f"{name}_{orientation}.jpg", (96, 96), "pad").astype(float)
        for orientation in range(9)
    ]
    for orientation, image in enumerate(images):
        assert np.abs(image - images[1]).mean() < 3, f"{name}_{orientation} is not upright"


def test_broken_images_decode_as_pillow_does_or_fail_with_a_reason(unusual_images: Path) -> None:
    files = sorted((unusual_images / "broken").iterdir())
    assert len(files) == 6
    for file in files:
        try:
            with Image.open(file) as image:
                expected = np.array(image.convert("RGB"))  # (H, W, 3)
        except (OSError, SyntaxError, ValueError):
            with pytest.raises(DecodeError) as caught:
                decode_pixels(file, (32, 32), "pad")
            assert caught.value.reason
        else:
            found = decode_pixels(file, (expected.shape[0], expected.shape[1]), "pad")
            np.testing.assert_array_equal(found, expected, err_msg=file.name)
