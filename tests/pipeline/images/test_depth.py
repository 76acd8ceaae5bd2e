"""Grey of more than 8 bits: one rule for a dataset, and for what its model classifies."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.build.build import build_dataset
from pipeline.build.options import BuildOptions
from pipeline.dataset.schema import Attributes
from pipeline.dataset.store import Dataset, read_attributes
from pipeline.errors import DatasetError, OptionError, OutputExistsError
from pipeline.images import depth as depth_module
from pipeline.images.decode import decode_pixels
from pipeline.images.depth import ValueRange, choose_depth
from pipeline.images.flatness import count_flat
from pipeline.images.options import DecodeOptions, Depth, describe_depth, parse_depth

RNG = np.random.default_rng(0)


def encoded(values: npt.NDArray[np.generic], form: str = "TIFF") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()


def greys(values: list[float], dtype: type, depth: Depth | None) -> list[int]:
    data = encoded(np.array([values], dtype))
    return decode_pixels(data, (1, len(values)), "squash", DecodeOptions(depth))[0, :, 0].tolist()  # type: ignore[no-any-return]


def test_depth_maps_its_values_to_black_and_white_and_clips() -> None:
    assert greys([0, 819, 4095, 60000], np.uint16, (0, 4095)) == [0, 51, 255, 255]
    assert greys([27000, 28000, 29500, 31000], np.uint16, (28000, 31000)) == [0, 0, 128, 255]
    assert greys([-40, 0, 60, np.nan, np.inf], np.float32, (-40, 60)) == [0, 102, 255, 0, 0]
    assert greys([-5, 0, 5], np.int32, (0, 5)) == [0, 0, 255]


def retagged(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a tag that has one 16-bit value."""
    start = data.index(struct.pack("<HHI", tag, 3, 1)) + 8
    return data[:start] + struct.pack("<H", value) + data[start + 2 :]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_tiff_whose_lowest_value_is_white(dtype: type) -> None:
    data = retagged(encoded(np.array([[0, 100, 1000]], dtype)), 262, 0)
    shown = decode_pixels(data, (1, 3), "squash", DecodeOptions((0, 1000)))[0, :, 0].tolist()
    assert shown == [255, 229, 0]
    # Models of an earlier version, without a depth, were trained on such images as they stand in the file.
    assert decode_pixels(data, (1, 3), "squash")[0, 0, 0] == 0


def test_unsigned_values_of_32_bits() -> None:
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    data = retagged(encoded(values.view(np.int32)), 339, 1)
    assert decode_pixels(data, (1, 3), "squash", DecodeOptions((0, 2**32 - 1)))[0, :, 0].tolist() == [0, 128, 255]


def test_equal_values_are_equal_greys_in_all_images_of_a_dataset() -> None:
    depth = choose_depth([ValueRange(-3.0, 400.0, False, 9)])
    assert greys([-3, 100, 400], np.float32, depth)[1] == greys([0, 100, 300], np.float32, depth)[1]
    assert greys([-3, 100, 400], np.float32, None)[1] != greys([0, 100, 300], np.float32, None)[1]


@pytest.mark.parametrize(
    ("low", "high", "is_integer", "expected"),
    [
        (0, 200, True, (0, 255)), (0, 1023, True, (0, 1023)), (3, 4000, True, (0, 4095)), (0, 16000, True, (0, 16383)),
        (0, 65535, True, (0, 65535)), (28000, 31000, True, (28000, 31000)), (-500, 3000, True, (-500, 3000)),
        (0.0, 0.9, False, (0, 1)), (0.0, 254.5, False, (0, 255)), (-40.5, 80.0, False, (-40.5, 80.0)),
        (0.0, 1e9, False, (0, 1e9)), (7, 7, True, (0, 255)), (-2.0, -2.0, False, (-2, 1)), (5e5, 5e5, True, (0, 5e5)),
    ],
)  # fmt: skip
def test_depth_of_a_sample(low: float, high: float, is_integer: bool, expected: Depth) -> None:
    assert choose_depth([ValueRange(low, high, is_integer, 1)]) == expected


def test_depth_as_text() -> None:
    assert [parse_depth(text) for text in ("auto", "12", "0..1", "-20.5..80", " 16 ")] == [
        None, (0, 4095), (0, 1), (-20.5, 80), (0, 65535)
    ]  # fmt: skip
    for depth in ((0.0, 4095.0), (-39.88461303710938, 1e30)):
        assert parse_depth(describe_depth(depth)) == depth
    assert describe_depth((0.0, 4095.0)) == "0..4095"
    for text in ("", "0", "33", "5..3", "1..1", "0..inf", "nan..1", "a..b", "1...2.", "0..1..2"):
        with pytest.raises(OptionError, match=r"expected auto, a number of bits"):
            parse_depth(text)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int32])
@pytest.mark.parametrize("depth", [None, (100.0, 3000.0)])
def test_bands_do_not_change_the_result(
    dtype: type, depth: Depth | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(RNG.integers(0, 4000, (37, 20)).astype(dtype))
    whole = decode_pixels(data, (37, 20), "pad", DecodeOptions(depth))
    monkeypatch.setattr(depth_module, "BAND_PIXELS", 100)
    np.testing.assert_array_equal(decode_pixels(data, (37, 20), "pad", DecodeOptions(depth)), whole)


# Datasets


def folder(root: Path, low: float, high: float, dtype: type = np.uint16) -> Path:
    """Two classes of 12 images each, of blocks with values from low to high."""
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(12):
            blocks = RNG.random((4, 4)).repeat(8, 0).repeat(8, 1)  # (32, 32)
            blocks[0, :2] = 0, 1
            (root / name / f"{number}.tif").write_bytes(encoded((low + blocks * (high - low)).astype(dtype)))
    return root


@pytest.mark.parametrize(
    ("low", "high", "dtype", "expected"),
    [(0, 4095, np.uint16, (0, 4095)), (28000, 31000, np.uint16, (28000, 31000)), (0, 1, np.float32, (0, 1)),
     (-20, 80, np.float32, (-20, 80))],
)  # fmt: skip
def test_build_finds_the_depth_and_its_images_differ(
    low: float, high: float, dtype: type, expected: Depth, tmp_path: Path
) -> None:
    report = build_dataset(
        folder(tmp_path / "images", low, high, dtype), tmp_path / "d.zarr", BuildOptions(size=(32, 32))
    )
    assert report.depth == expected
    assert report.duplicates is not None
    assert report.duplicates.groups == 0
    assert report.flat == (0, report.rows["train"])
    data = Dataset.open(tmp_path / "d.zarr")
    images, _, paths = data.train[:]
    assert images.min() == 0
    assert images.max() == 255
    for image, path in zip(images, paths, strict=True):
        file = tmp_path / "images" / str(path)
        np.testing.assert_array_equal(image, decode_pixels(file, (32, 32), "pad", DecodeOptions(expected)))


def test_depth_is_an_option_of_the_build(tmp_path: Path) -> None:
    images, dest = folder(tmp_path / "images", 0, 4095), tmp_path / "d.zarr"
    report = build_dataset(images, dest, BuildOptions(size=(32, 32), depth=(0.0, 65535.0)))
    assert report.depth == (0, 65535)
    assert report.flat == (report.rows["train"],) * 2
    with pytest.raises(OutputExistsError):
        build_dataset(images, dest, BuildOptions(size=(32, 32)))
    assert read_attributes(dest).depth == (0, 65535)


def test_eight_bits_have_no_depth_and_older_datasets_none(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            noise = RNG.integers(0, 255, (16, 16), dtype=np.uint8)  # (16, 16)
            Image.fromarray(noise).save(tmp_path / "images" / name / f"{number}.png")
    build_dataset(tmp_path / "images", tmp_path / "d.zarr", BuildOptions(size=(16, 16)))
    attributes = read_attributes(tmp_path / "d.zarr").to_json()
    assert "depth" not in attributes
    del attributes["crc32"]  # older datasets have none
    assert Attributes.from_json(attributes, "").depth is None
    assert Attributes.from_json(attributes | {"depth": [0, 4095]}, "").depth == (0, 4095)
    for damaged in ([5, 5], [float("nan"), 1], [0, float("inf")], [1], 7):
        with pytest.raises(DatasetError, match="metadata is damaged"):
            Attributes.from_json(attributes | {"depth": damaged}, "")


def test_flat_images_are_counted_without_their_border() -> None:
    images = np.full((4, 20, 20, 3), 255, np.uint8)  # (4, 20, 20, 3)
    images[1, 5:15] = 7
    images[2, 5:15] = 7
    images[2, 7, 7] = 7 + 17
    images[3] = RNG.integers(100, 117, (20, 20, 3))
    assert count_flat(images) == 3


# Colour of 16 bits ------------------------------------------------------------------------------------

COLOURS = np.array([[[0, 819, 4095], [4095, 2048, 0], [1024, 1024, 1024]]], np.uint16)  # (1, 3, 3), of 12 bits


def png(values: npt.NDArray[np.uint16], kind: int, before: bytes = b"") -> bytes:
    """A PNG of 16 bits: kind 2 is RGB, 4 grey with alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + line.astype(">u2").tobytes() for line in values))
    chunks = [chunk(b"IHDR", head), before, chunk(b"IDAT", lines[:9]), chunk(b"IDAT", lines[9:]), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(values: npt.NDArray[np.uint16], order: str, compress: bool) -> bytes:
    """A TIFF of 16-bit RGB in the byte order `<` or `>`."""
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compress else data
    height, width = values.shape[:2]
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, None), (259, 3, 8 if compress else 1), (262, 3, 2),
        (273, 4, 8 + 2 + 9 * 12 + 4 + 6), (277, 3, 3), (278, 4, height), (279, 4, len(data)),
    ]  # fmt: skip
    entries = b""
    for tag, kind, value in tags:
        if value is None:
            entries += struct.pack(f"{order}HHII", tag, kind, 3, 8 + 2 + 9 * 12 + 4)
        else:
            entries += struct.pack(f"{order}HHI{'H2x' if kind == 3 else 'I'}", tag, kind, 1, value)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return start + struct.pack(f"{order}H", 9) + entries + bytes(4) + struct.pack(f"{order}HHH", 16, 16, 16) + data


def shown(data: bytes, depth: Depth | None) -> list[list[int]]:
    return decode_pixels(data, (1, 3), "squash", DecodeOptions(depth))[0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "data",
    [png(COLOURS, 2), *(tiff(COLOURS, order, compress) for order in "<>" for compress in (False, True))],
    ids=["PNG", "TIFF", "compressed TIFF", "big-endian TIFF", "compressed big-endian TIFF"],
)
def test_depth_holds_for_colour(data: bytes) -> None:
    assert shown(data, (0, 4095)) == [[0, 51, 255], [255, 128, 0], [64, 64, 64]]
    assert shown(data, (1024, 2048)) == [[0, 0, 255], [255, 255, 0], [0, 0, 0]]
    assert shown(data, None) == [[0, 3, 15], [15, 8, 0], [4, 4, 4]], "as for models without a depth"


def test_depth_holds_for_colour_with_transparency() -> None:
    clear = np.array([65535, 0, 65535], np.uint16)[None, :, None]  # (1, 3, 1)
    assert shown(png(np.dstack([COLOURS, clear]), 6), (0, 4095)) == [[0, 51, 255], [255, 255, 255], [64, 64, 64]]
    grey = np.dstack([COLOURS[..., 1:2], clear])  # (1, 3, 2)
    assert shown(png(grey, 4), (0, 4095)) == [[51, 51, 51], [255, 255, 255], [64, 64, 64]]
    data = struct.pack(">HHH", 4095, 2048, 0)
    key = struct.pack(">I", 6) + b"tRNS" + data + struct.pack(">I", zlib.crc32(b"tRNS" + data))
    assert shown(png(COLOURS, 2, key), (0, 4095)) == [[0, 51, 255], [255, 255, 255], [64, 64, 64]]


def test_build_finds_the_depth_of_colour(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            values = RNG.integers(0, 4096, (16, 16, 3), np.uint16)  # (16, 16, 3)
            (root / name / f"{number}.png").write_bytes(png(values, 2))
    dataset = Dataset.open(build_dataset(root, tmp_path / "d.zarr", BuildOptions(size=(16, 16))).path)
    assert dataset.attributes.depth == (0, 4095) and dataset.train.read(0, 4).max() > 200
