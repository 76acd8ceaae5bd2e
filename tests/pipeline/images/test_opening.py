"""Formats, limits of memory and time, and silence."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DecodeError
from pipeline.images.decode import decode_image, decode_pixels
from pipeline.images.opening import FORMATS, quiet_pillow
from pipeline.images.options import DecodeOptions, parse_pixels
from tests.pipeline.images.samples import MODES, all_samples, multi_scan_jpeg, picture, progressive_jpeg


def reason(data: bytes, max_pixels: int = 10**6) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, (8, 8), "pad", options=DecodeOptions(max_pixels=max_pixels))
    return str(caught.value)


@pytest.mark.parametrize(("name", "data"), all_samples().items(), ids=all_samples())
def test_every_format_is_read(name: str, data: bytes) -> None:
    pixels = decode_pixels(data, (24, 24), "squash").astype(int)
    if not name.startswith(("AVIF", "JPEG", "multi", "WEBP", "GIF")) and name.split()[1] in ("RGB", "RGBA"):
        expected = np.asarray(picture("RGB"), int)  # (24, 24, 3)
        assert np.abs(pixels - expected).max() <= 1
    assert pixels.std() > 5


def test_all_formats_have_a_sample() -> None:
    assert set(FORMATS) == {*MODES, "PSD"}


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"II*\0\x08", "TIFF images that are damaged or of this kind (64 bits, floating-point colour, …) are"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC images are"), (b"\0\0\0\x18ftypmif1", "HEIC images are"),
        (b"\0\0\0\x18ftypisom", "films are"), (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS and PostScript are"),
        (b"\xd7\xcd\xc6\x9a\0\0", "WMF and EMF are"), (b"%PDF-1.7", "PDF documents are"),
        (b'<?xml version="1.0"?>\n<svg', "SVG drawings are"), (b"\n<!DOCTYPE html>", "web pages are"),
        (b"DDS \x7c", "DDS textures are"), (b"\xff\x0a\xff", "JPEG XL images are"), (b"PK\x03\x04", "archives are"),
    ],
)  # fmt: skip
def test_other_formats_are_named(start: bytes, what: str) -> None:
    assert reason(start + b"\0" * 100) == f"not-an-image: {what} not supported: convert it, for example to PNG"


def test_no_format_starts_another_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.init()  # all of Pillow's formats, as if another library had loaded them
    for name in ("run", "Popen", "check_call", "call", "check_output"):
        monkeypatch.setattr(subprocess, name, lambda *_, **__: pytest.fail("started a program"))
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    (tmp_path / "cat.jpg").write_bytes(file.getvalue())
    with pytest.raises(DecodeError, match="EPS and PostScript are not supported"):
        decode_pixels(tmp_path / "cat.jpg", (8, 8), "pad")
    with Image.open(tmp_path / "cat.jpg") as image, pytest.raises(DecodeError, match="not-an-image"):
        decode_pixels(image, (8, 8), "pad")


# Limits


@pytest.mark.parametrize("make", [multi_scan_jpeg, progressive_jpeg])
def test_jpeg_of_a_thousand_scans_is_refused(make: object) -> None:
    few, many = make(10, 64), make(1000, 64)  # type: ignore[operator]
    assert decode_image(few, (8, 8), "pad", options=DecodeOptions(max_pixels=64 * 64)).pixels.std() > 5
    assert reason(many, 64 * 64).startswith("too-large: expected at most 4,096 pixels, found 64×64 in ")
    assert decode_image(many, (8, 8), "pad").pixels.std() > 5, "an image as small as this one may have them"


def test_formats_that_take_more_count_more() -> None:
    for form, weight in (("QOI", 8), ("JPEG2000", 3), ("WEBP", 2), ("PNG", 1)):
        file = io.BytesIO()
        picture("RGB", 64).save(file, form)
        assert decode_image(file.getvalue(), (8, 8), "pad", options=DecodeOptions(max_pixels=64 * 64 * weight))
        assert "too-large: " in reason(file.getvalue(), 64 * 64 * weight - 1)


def test_pillows_limit_follows_and_is_restored() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with quiet_pillow(500), quiet_pillow(10**9):
        assert Image.MAX_IMAGE_PIXELS == 10**9
    assert before == Image.MAX_IMAGE_PIXELS
    assert [parse_pixels(text) for text in ("120M", "7", "1 m")] == [120_000_000, 7, 1_000_000]


MEMORY = """
import io, sys
import numpy as np
from PIL import Image
side = 5000
for image, options in (
    (np.zeros((side, side), np.uint16), {"format": "PNG"}),
    (np.zeros((side, side), np.float32), {"format": "TIFF", "compression": "tiff_lzw"}),
    (np.zeros((side, side, 4), np.uint8), {"format": "PNG"}),
):
    file = io.BytesIO()
    Image.fromarray(image).save(file, **options)
    with open(f"{sys.argv[1]}/{len(file.getvalue())}", "wb") as out:
        out.write(file.getvalue())
"""
PEAK = """
import pathlib, resource, sys
from PIL import Image
from pipeline.images.decode import decode_pixels
from pipeline.images.resize import resize_into
[file] = pathlib.Path(sys.argv[1]).glob(sys.argv[2])
decode_pixels(Image.new("RGB", (2, 2)), (64, 64), "pad")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_pixels(file, (64, 64), "pad")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 5000**2)
"""


def test_memory_per_pixel_is_bounded(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], check=True)
    for file in tmp_path.iterdir():
        peak = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path), file.name], check=True, capture_output=True, text=True
        ).stdout
        assert float(peak) < 10, f"{peak} bytes per pixel for {file.read_bytes()[:8]!r}"


# Silence


def test_pillows_log_is_not_printed() -> None:
    file = io.BytesIO()
    picture("RGB").save(file, "TIFF")
    data = bytearray(file.getvalue())
    samples_per_pixel = data.index(b"\x15\x01\x03\0\x01\0\0\0") + 8
    data[samples_per_pixel : samples_per_pixel + 2] = b"\xff\xff"
    code = "from pipeline.images.decode import *; import sys; decode_pixels(sys.stdin.buffer.read(), (8, 8), 'pad')"
    done = subprocess.run([sys.executable, "-c", code], input=bytes(data), capture_output=True, check=False)
    assert b"More samples per pixel" not in done.stderr
    assert b"DecodeError" in done.stderr


def test_libtiff_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)  # (64, 64, 3)
    Image.fromarray(noise).save(file, "TIFF", compression="tiff_lzw")
    data = bytearray(file.getvalue())
    data[60:4000] = b"\xff" * 3940
    assert reason(bytes(data)) == "broken: damaged data"
    assert capfd.readouterr().err == ""
