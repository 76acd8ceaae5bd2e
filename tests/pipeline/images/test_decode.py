"""Decoding: every mode, every orientation, every kind of damage."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import DecodeError, OptionError
from pipeline.images import decode
from pipeline.images.colours import to_rgb
from pipeline.images.decode import DecodeOptions, decode_image, decode_pixels
from pipeline.images.opening import quiet_pillow

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def flat(mode: str, colour: object, form: str = "PNG", **options: object) -> bytes:
    return encoded(Image.new(mode, (6, 4), colour), form, **options)  # type: ignore[arg-type]


def smooth(height: int, width: int) -> Image.Image:
    """An image with four different corners, smooth enough for a JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * y / height, 255 * x / width
    return Image.fromarray(np.stack([red, green, (red + green) / 2], axis=-1).astype(np.uint8))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


# Modes


PALETTE = [10, 20, 30, 200, 100, 50]


def palette_png(**options: object) -> bytes:
    image = Image.new("P", (6, 4), 1)
    image.putpalette(PALETTE)
    return encoded(image, **options)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(flat("RGB", (9, 80, 200)), (9, 80, 200), id="RGB"),
        pytest.param(flat("L", 77), (77, 77, 77), id="L"),
        pytest.param(flat("1", 1), (255, 255, 255), id="1"),
        pytest.param(flat("RGBA", (100, 0, 0, 255)), (100, 0, 0), id="RGBA opaque"),
        pytest.param(flat("RGBA", (100, 0, 0, 0)), (255, 255, 255), id="RGBA transparent"),
        pytest.param(flat("RGBA", (105, 5, 55, 51)), (225, 205, 215), id="RGBA a fifth"),
        pytest.param(flat("LA", (55, 51)), (215, 215, 215), id="LA"),
        pytest.param(palette_png(), (200, 100, 50), id="P"),
        pytest.param(palette_png(transparency=1), (255, 255, 255), id="P transparent index"),
        pytest.param(palette_png(transparency=b"\xff\x33"), (244, 224, 214), id="P tRNS bytes"),
        pytest.param(flat("I;16", 257 * 128), (128, 128, 128), id="I;16"),
        pytest.param(flat("I;16B", 257 * 128, "TIFF"), (128, 128, 128), id="I;16B"),
        pytest.param(flat("I", 257 * 64, "TIFF"), (64, 64, 64), id="I"),
        pytest.param(flat("F", 0.2, "TIFF"), (51, 51, 51), id="F in 0..1"),
        pytest.param(flat("F", 51.0, "TIFF"), (51, 51, 51), id="F in 0..255"),
        pytest.param(flat("CMYK", (0, 255, 255, 0), "TIFF"), (255, 0, 0), id="CMYK"),
        pytest.param(flat("YCbCr", (100, 128, 128), "TIFF"), (100, 100, 100), id="YCbCr"),
        pytest.param(flat("LAB", (255, 128, 128), "TIFF"), (255, 255, 255), id="LAB"),
        pytest.param(flat("L", 0, transparency=0), (255, 255, 255), id="L tRNS"),
        pytest.param(flat("1", 1, transparency=1), (255, 255, 255), id="1 tRNS"),
        pytest.param(flat("RGB", (1, 2, 3), transparency=(1, 2, 3)), (255, 255, 255), id="RGB tRNS"),
        pytest.param(flat("I;16", 500, transparency=500), (255, 255, 255), id="I;16 tRNS"),
        pytest.param(
            png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 5000, 600, 70),
                png_chunk(b"tRNS", struct.pack(">HHH", 5000, 600, 70))),
            (255, 255, 255), id="RGB of 16 bits, tRNS",
        ),
        pytest.param(
            png(1, 1, 2, 0, b"\0\x40", png_chunk(b"tRNS", b"\0\1")), (255, 255, 255), id="L of 2 bits, tRNS"
        ),
        pytest.param(
            png(1, 1, 4, 0, b"\0\x30", png_chunk(b"tRNS", b"\0\5")), (51, 51, 51), id="L of 4 bits, other tRNS"
        ),
        pytest.param(flat("RGB", (9, 80, 200), "WEBP", lossless=True), (9, 80, 200), id="WebP"),
        pytest.param(flat("RGB", (9, 80, 200), "BMP"), (9, 80, 200), id="BMP"),
    ],
)  # fmt: skip
def test_every_mode_gives_rgb_on_white(data: bytes, expected: tuple[int, int, int]) -> None:
    pixels = decode_pixels(data, (4, 6), "squash")
    assert pixels.shape == (4, 6, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (4, 6, 3)), atol=1)


def test_premultiplied_and_palette_alpha_are_composited_on_white() -> None:
    for image in (Image.new("RGBa", (2, 2), (51, 0, 0, 51)), Image.new("PA", (2, 2), (0, 0))):
        pixel = to_rgb(image, 1).getpixel((0, 0))
        assert pixel == ((255, 204, 204) if image.mode == "RGBa" else (255, 255, 255))


def test_deep_grey_beyond_the_usual_ranges_is_scaled_from_min_to_max() -> None:
    values = np.array([[-51.0, 0.0, 204.0, np.nan]], dtype=np.float32)
    pixels = decode_pixels(encoded(Image.fromarray(values), "TIFF"), (1, 4), "squash")
    assert pixels[0, :, 0].tolist() == [0, 51, 255, 0]


@pytest.mark.parametrize("value", [300.0, -5.0])
def test_flat_float_grey_beyond_the_usual_ranges_is_black(value: float) -> None:
    assert not decode_pixels(flat("F", value, "TIFF"), (4, 6), "squash").any()


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("P", (5, 5), 0), Image.new("P", (5, 5), 1)]
    for frame in frames:
        frame.putpalette([250, 0, 0, 0, 250, 0])
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_pixels(data, (5, 5), "pad")[0, 0].tolist() == [250, 0, 0]


# Frames


def test_pad_adds_white_crop_cuts_and_squash_scales() -> None:
    half = np.zeros((10, 20, 3), dtype=np.uint8)  # left black, right grey
    half[:, 10:] = 100
    data = encoded(Image.fromarray(half))
    padded = decode_pixels(data, (20, 20), "pad")
    assert (padded[:5] == 255).all(), "expected white above"
    assert (padded[15:] == 255).all(), "expected white below"
    np.testing.assert_array_equal(padded[5:15], half)
    np.testing.assert_array_equal(decode_pixels(data, (10, 10), "crop"), half[:, 5:15])
    squashed = decode_pixels(data, (10, 10), "squash")
    assert (squashed[:, 0] == 0).all()
    assert (squashed[:, 9] == 100).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24), st.sampled_from(decode.FITS))
def test_any_size_fits_any_frame(h: int, w: int, height: int, width: int, fit: str) -> None:
    pixels = decode_pixels(encoded(Image.new("RGB", (w, h), (0, 0, 0))), (height, width), fit)
    assert pixels.shape == (height, width, 3)
    if fit != "pad":
        assert not pixels.any(), "only padding is white"


@pytest.mark.parametrize("size", [(300, 401), (517, 233), (1000, 999)])
@pytest.mark.parametrize("fit", decode.FITS)
def test_draft_is_close_to_the_full_decode(size: tuple[int, int], fit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(smooth(*size), "JPEG", quality=95)
    drafted = decode_pixels(data, (48, 64), fit).astype(int)
    monkeypatch.setattr(decode, "DRAFT_MARGIN", 1e9)
    full = decode_pixels(data, (48, 64), fit).astype(int)
    assert np.abs(drafted - full).max() <= 4


@pytest.mark.parametrize("size", [(385, side) for side in range(521, 537, 3)])
def test_draft_does_not_stretch_a_size_that_is_not_a_multiple_of_the_scale(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.new("L", size[::-1]), "JPEG")  # black, so that white shows where the padding begins
    drafted = decode_pixels(data, (48, 64), "pad")
    monkeypatch.setattr(decode, "DRAFT_MARGIN", 1e9)
    np.testing.assert_array_equal(drafted, decode_pixels(data, (48, 64), "pad"))


# Orientation


TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("shape", [(400, 240), (40, 64)])
def test_exif_orientation_is_applied(form: str, orientation: int, shape: tuple[int, int]) -> None:
    upright = smooth(*shape)
    stored = upright.transpose(TO_STORED[orientation]) if orientation in TO_STORED else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, form, exif=exif, **({"quality": 95} if form != "PNG" else {}))
    for fit in decode.FITS:
        found = decode_pixels(data, (60, 44), fit).astype(int)
        expected = decode_pixels(encoded(upright), (60, 44), fit).astype(int)
        assert np.abs(found - expected).max() <= 8, f"orientation {orientation}, fit {fit}"


def test_image_with_damaged_exif_is_decoded() -> None:
    data = encoded(smooth(40, 40), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_pixels(data, (40, 40), "pad").shape == (40, 40, 3)


# Failures


def failure(source: Path | bytes) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode_pixels(source, (8, 8), "pad")
    assert "\n" not in str(caught.value)
    assert caught.value.reason
    return caught.value


def test_each_kind_of_failure_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert failure(empty).kind == "empty"
    assert failure(b"").kind == "empty"
    assert failure(tmp_path / "absent.png").kind == "unreadable"
    assert failure(tmp_path).kind == "unreadable"
    assert failure(pipe).kind == "unreadable"
    assert failure(Path("null\0byte")).kind == "unreadable"
    assert failure(b"hello, world").kind == "not-an-image"
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    assert failure(whole[: len(whole) // 2]).kind == "broken"
    jpeg = encoded(smooth(64, 64), "JPEG")
    assert failure(jpeg[: len(jpeg) // 2]).kind == "broken"
    assert failure(png(4, 4, 8, 2, b"\0" * 3)).kind == "broken"


@pytest.mark.parametrize("over", [1.5, 3.0])
def test_image_of_too_many_pixels_is_refused_with_the_option(over: float) -> None:
    data = encoded(Image.new("L", (64, 64)))
    with pytest.raises(DecodeError, match=r"^too-large: expected at most [\d,]+ pixels, found .*: raise --max-pixels$"):
        decode_image(data, (8, 8), "pad", options=DecodeOptions(max_pixels=int(4096 / over)))
    assert decode_image(data, (8, 8), "pad", options=DecodeOptions(max_pixels=4096)).pixels.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(struct.error("unpack"), "broken"), (OSError("truncated"), "broken"), (SyntaxError("not a\nTIFF file"), "broken"),
     (IndexError(), "broken"), (RecursionError("deep"), "broken")],
)  # fmt: skip
def test_any_exception_of_a_decoder_becomes_a_decode_error(
    raised: Exception, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: object) -> None:
        raise raised

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert failure(flat("RGB", 0)).kind == kind


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_bytes_give_pixels_or_a_decode_error(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]))
    whole = bytearray(encoded(smooth(24, 24).convert("P" if form == "GIF" else "RGB"), form))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(whole)))
    try:
        assert decode_pixels(bytes(whole[:cut]), (8, 8), "crop").shape == (8, 8, 3)
    except DecodeError as error:
        assert error.reason and "\n" not in str(error)


def test_out_receives_the_pixels() -> None:
    images = np.full((3, 20, 10, 3), 7, dtype=np.uint8)  # (n, H, W, 3)
    decoded = decode_image(encoded(smooth(30, 30)), (20, 10), "pad", images[1])
    np.testing.assert_array_equal(images[1], decode_pixels(encoded(smooth(30, 30)), (20, 10), "pad"))
    assert decoded.inner == (5, 0, 15, images.shape[2])
    assert (images[[0, 2]] == 7).all()
    with pytest.raises(DecodeError):
        decode_image(encoded(smooth(64, 64), "JPEG")[:900], (20, 10), "pad", images[2])
    assert (images[2] == 7).all(), "a failure must leave out as it was"
    for wrong in (images[:, 0], images[0, :, ::-1], images[0].astype(np.int8), images[0, :19]):
        with pytest.raises(OptionError, match=r"writable C-contiguous uint8 array \(20, 10, 3\)"):
            decode_image(encoded(smooth(30, 30)), (20, 10), "pad", wrong)


def test_wrong_arguments_raise_option_error() -> None:
    with pytest.raises(OptionError, match="expected a fit of pad, crop, squash, found 'fill': 'pad' is the default"):
        decode_pixels(b"x", (8, 8), "fill")
    with pytest.raises(OptionError, match="at least 1x1, found 0x8"):
        decode_pixels(b"x", (0, 8), "pad")


@pytest.mark.parametrize("module", ["PIL.Image", "pipeline.images.decode", "pipeline.images.colours"])
def test_warnings_of_decoding_are_silent(module: str) -> None:
    with quiet_pillow():
        warnings.warn_explicit("odd metadata", UserWarning, "file.py", 1, module)


def test_threads_restore_the_warning_filters() -> None:
    before = list(warnings.filters)
    noisy = palette_png(transparency=b"\xff\x33")  # Pillow warns at these
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode_pixels(noisy, (8, 8), "pad"), range(200)))
    assert list(warnings.filters) == before
