"""Augmentation: every epoch sees each image a little differently.

The draws are a function of (key, row). They become maps from output pixels to places in the source image, and
the device then crops, shifts, flips, normalises and recolours in one pass over the uint8 pixels (`Backend.resample`).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from cnn.errors import RecipeError
from cnn.rng import uniform

_DRAWS = 9  # uniform numbers for each image
_LUMA = np.array([0.299, 0.587, 0.114])  # (3,): how bright red, green and blue look (Rec. 601)


class Maps(NamedTuple):
    """Where each output pixel comes from; see `Backend.resample`."""

    ys: np.ndarray  # float32 (N, H): source row of each output row
    xs: np.ndarray  # float32 (N, W): source column of each output column
    holes: np.ndarray | None  # int64 (N, 4): top, bottom, left, right of what is cut out

    def mirrored(self, which: np.ndarray) -> "Maps":
        """The same, those images for which `which` (N,) is true mirrored left to right."""
        return self._replace(xs=np.where(which[:, None], self.xs[:, ::-1], self.xs))


@dataclass(frozen=True)
class Augment:
    """What to vary. All sizes are shares of the image's side, so that one recipe fits any image size.

    flip: mirror left to right, every other time: at random, or by turns (`alternate`, see `alternate_flips`).
    shift: move by up to this share, the border reflected into what opens.
    crop_scale: the least share of the area that a random resized crop keeps (Szegedy et al., 2015); 1 is off.
    crop_stretch: the crop's height over width varies by up to this factor either way.
    cutout: the side of a square, as a share, that is blanked at a random place (DeVries and Taylor, 2017).
    brightness, contrast, saturation: by how much each varies, up or down from 1; see `colours`. 0 is off.
    """

    flip: bool | Literal["alternate"] = True
    shift: float = 0.0
    crop_scale: float = 0.4
    crop_stretch: float = 4 / 3
    cutout: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("shift", 0.0, 0.5), ("crop_scale", 0.01, 1.0), ("crop_stretch", 1.0, 10.0), ("cutout", 0.0, 1.0)
        ):
            if not low <= getattr(self, name) <= high:
                raise RecipeError(f"augment {name}: expected {low:g} to {high:g}, found {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise RecipeError(
                    f"augment {name}: expected 0 or more and less than 1, found {getattr(self, name)}"
                )

    def maps(self, key: int, rows: np.ndarray, height: int, width: int) -> Maps:
        """The maps for images with numbers `rows` (N,): a function of (key, row). Flips by turns are not in them."""
        draws = uniform(key, rows, _DRAWS).astype(np.float64).T  # (9, N)
        mirror, down, across, area, stretch, crop_y, crop_x, hole_y, hole_x = draws
        ys, xs = identity_maps(len(rows), height, width)[:2]  # (N, H), (N, W)
        if self.crop_scale < 1.0:
            kept = self.crop_scale + (1.0 - self.crop_scale) * area  # (N,) share of the area
            ratio = np.exp((2.0 * stretch - 1.0) * math.log(self.crop_stretch))  # (N,) height over width
            ys = _stretched(ys, height, np.minimum(np.sqrt(kept * ratio), 1.0), crop_y)
            xs = _stretched(xs, width, np.minimum(np.sqrt(kept / ratio), 1.0), crop_x)
        if self.shift > 0.0:
            ys = _reflected(ys + _whole(down, self.shift * height)[:, None], height)
            xs = _reflected(xs + _whole(across, self.shift * width)[:, None], width)
        if self.flip is True:
            xs = np.where(mirror[:, None] < 0.5, xs, xs[:, ::-1])
        holes = None
        if self.cutout > 0.0:
            top, bottom = span(hole_y, self.cutout, height)
            left, right = span(hole_x, self.cutout, width)
            holes = np.stack([top, bottom, left, right], axis=1)  # (N, 4)
        return Maps(ys.astype(np.float32), np.ascontiguousarray(xs, np.float32), holes)

    def colours(self, key: int, rows: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray | None:
        """Matrices for the colours of images with numbers `rows` (N,): float32 (N, 3, 4), None if none vary.

        Each acts on a pixel's (red, green, blue, 1), normalised by `mean` and `std` (3,). In real colours it
        multiplies by a brightness, then moves them from the mean colour by a contrast, then from the pixel's own luma
        by a saturation: factors from 1 - x to 1 + x, each as likely. So does torchvision's
        ColorJitter, but for the order, which is always this one, the mean colour, which there is the image's own
        mean grey, and values beyond black and white, which are not clipped: all of it is one matrix. A function of
        (key, row).
        """
        reach = np.array([self.brightness, self.contrast, self.saturation])  # (3,)
        if not reach.any():
            return None
        draws = uniform(key, rows, 3).astype(np.float64)  # (N, 3)
        brightness, contrast, saturation = (1.0 + reach * (2.0 * draws - 1.0)).T[:, :, None, None]  # (N, 1, 1) each
        middle, spread = np.asarray(mean, np.float64)[:, None], np.asarray(std, np.float64)[:, None]  # (3, 1) each
        saturate = saturation * np.eye(3) + (1.0 - saturation) * _LUMA  # (N, 3, 3)
        linear = saturate * (contrast * brightness)  # (N, 3, 3)
        constant = saturate @ ((1.0 - contrast) * middle)  # (N, 3, 1)
        # A real colour is middle + spread * (the normalised one).
        constant = constant + linear @ middle - middle  # (N, 3, 1)
        return (np.concatenate([linear * spread.T, constant], axis=2) / spread).astype(np.float32)  # (N, 3, 4)


def identity_maps(count: int, height: int, width: int) -> Maps:
    """The maps that change nothing, for evaluation."""
    ys = np.broadcast_to(np.arange(height, dtype=np.float32), (count, height))  # (N, H)
    xs = np.broadcast_to(np.arange(width, dtype=np.float32), (count, width))  # (N, W)
    return Maps(np.ascontiguousarray(ys), np.ascontiguousarray(xs), None)


def alternate_flips(key: int, rows: np.ndarray, epoch: int) -> np.ndarray:
    """Which of `rows` are mirrored in `epoch`, from 0: bool (N,), a random half in the first, the others in the next.

    So a network sees both sides of every image in any two epochs (Jordan, 2024). `key` is the same in all epochs.
    """
    first = uniform(key, rows, 1)[:, 0] < 0.5  # (N,)
    return first if epoch % 2 == 0 else ~first


class View(NamedTuple):
    """One look at an image, moved down and right by `shift` 32nds of its side; its outputs count with `weight`."""

    weight: float
    shift: int
    mirrored: bool

    def maps(self, count: int, height: int, width: int) -> Maps:
        """The maps for so many images, the border reflected into what opens."""
        ys, xs, _ = identity_maps(count, height, width)
        ys, xs = (
            _reflected(places - self.shift * max(1, round(size / 32)), size).astype(np.float32)
            for places, size in ((ys, height), (xs, width))
        )  # (N, H), (N, W)
        return Maps(ys, xs, None).mirrored(np.full(count, self.mirrored))


# What a network may look at to judge an image: the mean of its outputs, by weight.
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (View(1.0, 0, False),),
    "mirror": (View(0.5, 0, False), View(0.5, 0, True)),
    "mirror_shift": (
        View(0.25, 0, False), View(0.25, 0, True),
        View(0.125, 1, False), View(0.125, 1, True), View(0.125, -1, False), View(0.125, -1, True),
    ),
}  # fmt: skip


def span(draw: np.ndarray, share: np.ndarray | float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last pixel of a stretch centred anywhere, cut off at the border: int64 (N,) each.

    Its length before that is `share` of `size`: one number, or (N,).
    """
    length = np.rint(np.multiply(share, size)).astype(np.int64)  # () or (N,)
    start = np.floor(draw * size).astype(np.int64) - length // 2  # (N,)
    return np.clip(start, 0, size), np.clip(start + length, 0, size)


def _whole(draw: np.ndarray, reach: float) -> np.ndarray:
    """Whole numbers from -reach to reach, each as likely: (N,)."""
    limit = round(reach)
    return np.floor(draw * (2 * limit + 1)) - limit


def _stretched(positions: np.ndarray, size: int, share: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Positions (N, size) squeezed into a randomly placed stretch of `share` (N,) of the side, by pixel centres."""
    start = draw * (1.0 - share) * size  # (N,)
    return np.clip(start[:, None] + (positions + 0.5) * share[:, None] - 0.5, 0, size - 1)  # (N, size)


def _reflected(positions: np.ndarray, size: int) -> np.ndarray:
    """Positions beyond the border mirrored back at the outermost pixels."""
    inside = np.abs(positions)
    return np.clip(np.where(inside > size - 1, 2 * (size - 1) - inside, inside), 0, size - 1)
