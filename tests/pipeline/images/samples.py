"""Small images in every format that is read, made by Pillow, and JPEGs of many scans."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

MODES = {
    "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "L", "LA", "1", "I;16"), "WEBP": ("RGB", "RGBA"),
    "GIF": ("P",), "TIFF": ("RGB", "RGBA", "L", "F", "I", "I;16", "CMYK", "1"), "BMP": ("RGB", "P"), "AVIF": ("RGB",),
    "JPEG2000": ("RGB", "L"), "PPM": ("RGB", "L"), "DIB": ("RGB",), "ICO": ("RGBA",), "PCX": ("RGB",),
    "QOI": ("RGB",), "SGI": ("RGB",), "TGA": ("RGBA",),
}  # fmt: skip
OPTIONS: dict[str, tuple[dict[str, object], ...]] = {
    "JPEG": ({}, {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}),
    "PNG": ({}, {"dpi": (72, 72), "icc_profile": b"x" * 50}),
    "WEBP": ({}, {"lossless": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
    "TGA": ({}, {"compression": "tga_rle"}),
}


def picture(mode: str, side: int = 24) -> Image.Image:
    """A smooth image with four different corners, of any mode."""
    y, x = np.mgrid[0:side, 0:side] / side
    rgb = Image.fromarray((np.stack([y, x, (y + x) / 2], axis=-1) * 255).astype(np.uint8))  # from (side, side, 3)
    if mode == "I;16":
        return Image.fromarray((y * 65535).astype(np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray((y * 65535).astype(np.int32 if mode == "I" else np.float32))
    return rgb.convert(mode)


def all_samples() -> dict[str, bytes]:
    """Name -> file."""
    samples = {"multi-scan JPEG": multi_scan_jpeg(1), "PSD RGB": psd()}
    for form, modes in MODES.items():
        for mode in modes:
            for number, options in enumerate(OPTIONS.get(form, ({},))):
                if mode in ("F", "I", "I;16") and options.get("compression") == "packbits":
                    continue
                file = io.BytesIO()
                picture(mode).save(file, form, **options)  # type: ignore[arg-type]
                samples[f"{form} {mode} {number}"] = file.getvalue()
    return samples


def psd(side: int = 24) -> bytes:
    """A Photoshop file without layers, which Pillow does not write."""
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, side, side, 8, 3)
    planes = np.asarray(picture("RGB", side)).transpose(2, 0, 1)  # (3, side, side)
    return header + struct.pack(">IIIH", 0, 0, 0, 0) + planes.tobytes()


def multi_scan_jpeg(scans: int, side: int = 16) -> bytes:
    """A sequential JPEG of three channels with scans of their own, each of them `scans` times."""
    file = io.BytesIO()
    picture("L", side).save(file, "JPEG")
    grey = file.getvalue()
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    (length,) = struct.unpack_from(">H", grey, frame + 2)
    channels = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    header = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, side, side, 3) + channels
    data = grey[scan + 10 : -2]
    body = b"".join(b"\xff\xda" + bytes((0, 8, 1, number, 0, 0, 63, 0)) + data for number in (1, 2, 3))
    return grey[:frame] + header + grey[frame + 2 + length : scan] + body * scans + b"\xff\xd9"


def progressive_jpeg(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are so many."""
    file = io.BytesIO()
    picture("RGB", side).save(file, "JPEG", progressive=True)
    image = file.getvalue()
    last = image[image.rindex(b"\xff\xda") : -2]
    return image[:-2] + last * (scans - image.count(b"\xff\xda")) + b"\xff\xd9"
