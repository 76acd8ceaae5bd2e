"""Fast resize: Pillow's pixels bit for bit, nothing written elsewhere, and Pillow as the fallback."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from pipeline.images import decode, resize
from pipeline.images.colours import to_rgb
from pipeline.images.decode import Box, decode_image, decode_pixels
from pipeline.images.resize import resize_into

needs_arrow = pytest.mark.skipif(
    not hasattr(Image.Image, "__arrow_c_array__"), reason="this version of Pillow does not expose its pixels"
)
CANARY = 99


@pytest.fixture
def fresh_check() -> Iterator[None]:
    """Repeat the check of the fast resize, in the test and after it."""
    decode.fast_resize.cache_clear()
    yield
    decode.fast_resize.cache_clear()


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """Mostly black and white, so that filtered values overshoot both ends of a byte."""
    values = np.random.default_rng(seed).integers(-200, 456, (height, width, 3)).clip(0, 255)
    return Image.fromarray(values.astype(np.uint8))


def full_box(image: Image.Image) -> Box:
    return 0.0, 0.0, float(image.width), float(image.height)


def by_pillow(image: Image.Image, box: Box, size: tuple[int, int], gap: float | None = None) -> npt.NDArray[np.uint8]:
    return np.array(image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=gap))


def is_tall(image: Image.Image, size: tuple[int, int]) -> bool:
    """Whether Pillow 13 does the vertical pass first."""
    return image.height - size[1] > max(0, 2 * (image.width - size[0]))


sides = st.integers(1, 90)
edges = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@needs_arrow
@settings(max_examples=400)
@given(sides, sides, st.integers(1, 60), st.integers(1, 60), st.tuples(*[edges] * 4), st.integers(0, 9))
def test_pixels_equal_pillows_and_nothing_else_is_written(
    height: int, width: int, out_height: int, out_width: int, corners: tuple[float, ...], seed: int
) -> None:
    image = noise(height, width, seed)
    left, right = sorted((corners[0] * width, corners[1] * width))
    top, bottom = sorted((corners[2] * height, corners[3] * height))
    size = (out_width, out_height)
    for box in (full_box(image), (left, top, right, bottom)):
        canvas = np.full((out_height + 2, out_width + 5, 3), CANARY, dtype=np.uint8)  # (h + 2, w + 5, 3)
        out = canvas[1:-1, 2:-3]  # (h, w, 3)
        done = resize_into(image, box, out)
        assert done != is_tall(image, size)
        if done:
            np.testing.assert_array_equal(out, by_pillow(image, box, size))
            out[...] = CANARY
        assert (canvas == CANARY).all(), "written outside of out"


@needs_arrow
@pytest.mark.parametrize("width", range(1, 12))
def test_nothing_is_written_beyond_the_last_row(width: int) -> None:
    image = noise(21, 27)
    memory = np.full(3 * 9 * width + 64, CANARY, dtype=np.uint8)  # (bytes,)
    out = memory[32:-32].reshape(9, width, 3)
    assert resize_into(image, full_box(image), out)
    np.testing.assert_array_equal(out, by_pillow(image, full_box(image), (width, 9)))
    assert (memory[:32] == CANARY).all()
    assert (memory[-32:] == CANARY).all()


@needs_arrow
@pytest.mark.parametrize("orientation", range(1, 9))
def test_views_of_any_strides_are_written(orientation: int) -> None:
    image = noise(30, 40)
    upright = np.zeros((13, 19, 3), dtype=np.uint8)  # (h, w, 3)
    view = decode._stored_view(upright, orientation)
    assert resize_into(image, full_box(image), view)
    np.testing.assert_array_equal(view, by_pillow(image, full_box(image), (view.shape[1], view.shape[0])))


@needs_arrow
def test_many_threads_give_the_same_pixels() -> None:
    images = [noise(40 + number, 90 - number, number) for number in range(24)]
    outs = np.zeros((len(images), 31, 33, 3), dtype=np.uint8)  # (n, h, w, 3)

    def repeatedly(number: int) -> None:
        for _ in range(20):
            assert resize_into(images[number], full_box(images[number]), outs[number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(repeatedly, range(len(images))))
    for image, out in zip(images, outs, strict=True):
        np.testing.assert_array_equal(out, by_pillow(image, full_box(image), (33, 31)))


@needs_arrow
def test_unsupported_images_are_refused_and_out_is_untouched() -> None:
    out = np.full((40, 40, 3), CANARY, dtype=np.uint8)  # (h, w, 3)
    small = noise(50, 50)
    in_blocks = Image.new("RGB", (2050, 2050))  # over 16 MiB, which Pillow stores in several blocks
    assert not resize_into(in_blocks, full_box(in_blocks), out)
    for mode in ("L", "RGBA", "CMYK"):
        assert not resize_into(Image.new(mode, (50, 50)), full_box(small), out)
    assert not resize_into(noise(200, 50), (0.0, 0.0, 50.0, 200.0), out)
    for box in ((-1.0, 0.0, 50.0, 50.0), (0.0, 0.0, 50.1, 50.0), (0.0, 30.0, 50.0, 20.0), (0.0, 0.0, np.nan, 50.0)):
        assert not resize_into(small, box, out)
    assert (out == CANARY).all()


# In decode


def reference(data: bytes, size: tuple[int, int], fit: str) -> npt.NDArray[np.uint8]:
    """`decode_pixels` with Pillow alone: resized, transposed, pasted on white."""
    height, width = size
    with Image.open(io.BytesIO(data)) as image:
        is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
        stored = decode._as_stored((width, height), decode._orientation(image))
        box = decode._draft(image, stored, fit) if is_jpeg else None
        image.load()
        orientation = decode._orientation(image)
        upright = to_rgb(image, 1)
    right, bottom = (box or full_box(upright))[2:]
    frame = (height, width) if orientation in decode.TRANSPOSED_ORIENTATIONS else (width, height)
    ratios = (frame[0] / right, frame[1] / bottom)
    box, stored = (0.0, 0.0, right, bottom), frame
    if fit == "pad":
        stored = (max(1, round(right * min(ratios))), max(1, round(bottom * min(ratios))))
    elif fit == "crop":
        over_x, over_y = max(0.0, right - frame[0] / max(ratios)), max(0.0, bottom - frame[1] / max(ratios))
        box = (over_x / 2, over_y / 2, right - over_x / 2, bottom - over_y / 2)
    upright = Image.fromarray(by_pillow(upright, box, stored, decode.REDUCING_GAP))
    transposes = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    if orientation in transposes:
        upright = upright.transpose(transposes[orientation])
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(upright, ((width - upright.width) // 2, (height - upright.height) // 2))
    return np.array(canvas)


def file_of(image: Image.Image, form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, form, exif=exif)
    return file.getvalue()


@settings(max_examples=250)
@given(
    st.integers(1, 120), st.integers(1, 120), st.integers(1, 40), st.integers(1, 40), st.sampled_from(decode.FITS),
    st.sampled_from(["RGB JPEG", "L JPEG", "RGB PNG", "RGBA PNG", "P PNG"]), st.integers(0, 9),
)  # fmt: skip
def test_decoded_images_equal_those_of_pillow_alone(
    height: int, width: int, out_height: int, out_width: int, fit: str, kind: str, orientation: int
) -> None:
    mode, form = kind.split()
    image = noise(height, width)
    if mode == "RGBA":
        image.putalpha(image.getchannel(0))
    data = file_of(image.convert(mode), form, orientation)
    out = np.full((3, out_height, out_width, 3), CANARY, dtype=np.uint8)  # (n, H, W, 3)
    try:
        expected = reference(data, (out_height, out_width), fit)
    except ValueError:  # Pillow refuses some nearly empty boxes
        assume(False)
    decoded = decode_image(data, (out_height, out_width), fit, out[1])
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert np.shares_memory(decoded.pixels, out[1])
    assert (out[[0, 2]] == CANARY).all(), "written outside of out"


@needs_arrow
def testfast_resize_is_used(fresh_check: None, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr(resize, "resize_into", lambda *args: done.append(resize_into(*args)) or done[-1])
    for orientation in (1, 6):
        for size in ((60, 50), (501, 377)):
            done.clear()
            decode_pixels(file_of(noise(*size), "JPEG", orientation), (32, 32), "pad")
            assert done[-1]


def test_old_pillow_gives_the_same_pixels(fresh_check: None, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [file_of(noise(50, 81 - orientation), "PNG", orientation) for orientation in range(1, 9)]
    before = [decode_pixels(data, (33, 29), fit) for data in files for fit in decode.FITS]
    monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    decode.fast_resize.cache_clear()
    after = [decode_pixels(data, (33, 29), fit) for data in files for fit in decode.FITS]
    np.testing.assert_array_equal(after, before)
    assert not resize_into(noise(8, 8), (0.0, 0.0, 8.0, 8.0), np.zeros((4, 4, 3), dtype=np.uint8))


@needs_arrow
def testfast_resize_is_not_used_if_pillow_computes_other_values(
    fresh_check: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_bicubic = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize",
        lambda image, size, _filter, *args, **names: by_bicubic(image, size, Image.Resampling.LANCZOS, *args, **names),
    )  # fmt: skip
    assert decode.fast_resize() is None


@needs_arrow
def testfast_resize_is_not_used_if_rows_have_gaps(fresh_check: None) -> None:
    Image.core.set_alignment(64)  # type: ignore[attr-defined]
    try:
        assert decode.fast_resize() is None
    finally:
        Image.core.set_alignment(1)  # type: ignore[attr-defined]
    decode.fast_resize.cache_clear()
    assert decode.fast_resize() is not None
