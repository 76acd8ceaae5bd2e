"""Random augmentation of training images: flip, shift, crop, cutout and colour jitter.

The draws are a function of (key, row). They become maps from output pixels to positions in the source image, and
the device then crops, shifts, flips, normalises and recolours in one pass over the uint8 pixels (`Backend.resample`).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from cnn.errors import RecipeError, number
from cnn.rng import uniform

_DRAWS = 9  # uniform numbers per image
_LUMA = np.array([0.299, 0.587, 0.114])  # (3,): weights of red, green and blue in the luma (Rec. 601)


class Maps(NamedTuple):
    """Sampling maps: the source position of each output pixel; see `Backend.resample`."""

    ys: np.ndarray  # float32 (N, H): source row of each output row
    xs: np.ndarray  # float32 (N, W): source column of each output column
    holes: np.ndarray | None  # int64 (N, 4): top, bottom, left, right of the cutout

    def mirrored(self, which: np.ndarray) -> "Maps":
        """The same maps, with the images for which `which` (N,) is true mirrored left to right."""
        return self._replace(xs=np.where(which[:, None], self.xs[:, ::-1], self.xs))


@dataclass(frozen=True)
class Augment:
    """Augmentation settings. Lengths are fractions of the image's side, so that one recipe fits any image size.

    flip: mirror left to right with probability 1/2, or in every other epoch (`alternate`, see `alternate_flips`).
    shift: shift by up to this fraction; the border is reflected into the uncovered edge.
    crop_scale: the smallest fraction of the area in a random resized crop (Szegedy et al., 2015); 1 is off.
    crop_stretch: the crop's height over width varies by up to this factor either way.
    cutout: the side of a square that is blanked at a random place (DeVries and Taylor, 2017); 0 is off.
    brightness, contrast, saturation: each factor varies by up to this much around 1; see `colours`. 0 is off.

    Raises `RecipeError` for a value out of range.
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
        if not isinstance(self.flip, bool) and self.flip != "alternate":
            raise RecipeError(f"augment flip: expected True, False or 'alternate', found {self.flip!r}; write one")
        for name, low, high in (
            ("shift", 0.0, 0.5), ("crop_scale", 0.01, 1.0), ("crop_stretch", 1.0, 10.0), ("cutout", 0.0, 1.0)
        ):
            if not low <= number(getattr(self, name)) <= high:
                raise RecipeError(f"augment {name}: expected {low:g} to {high:g}, found {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0.0 <= number(getattr(self, name)) < 1.0:
                raise RecipeError(
                    f"augment {name}: expected 0 or more and less than 1, found {getattr(self, name)}"
                )

    def maps(self, key: int, rows: np.ndarray, height: int, width: int) -> Maps:
        """The maps of images with row numbers `rows` (N,), without alternate flips: a function of (key, row)."""
        draws = uniform(key, rows, _DRAWS).astype(np.float64).T  # (9, N)
        mirror, down, across, area, stretch, crop_y, crop_x, hole_y, hole_x = draws
        ys, xs = identity_maps(len(rows), height, width)[:2]  # (N, H), (N, W)
        if self.crop_scale < 1.0:
            fraction = self.crop_scale + (1.0 - self.crop_scale) * area  # (N,) of the image's area
            ratio = np.exp((2.0 * stretch - 1.0) * math.log(self.crop_stretch))  # (N,) height over width
            ys = _crop(ys, height, np.minimum(np.sqrt(fraction * ratio), 1.0), crop_y)
            xs = _crop(xs, width, np.minimum(np.sqrt(fraction / ratio), 1.0), crop_x)
        if self.shift > 0.0:
            ys = reflect(ys + _random_integers(down, self.shift * height)[:, None], height)
            xs = reflect(xs + _random_integers(across, self.shift * width)[:, None], width)
        if self.flip is True:
            xs = np.where(mirror[:, None] < 0.5, xs, xs[:, ::-1])
        holes = None
        if self.cutout > 0.0:
            top, bottom = span(hole_y, self.cutout, height)
            left, right = span(hole_x, self.cutout, width)
            holes = np.stack([top, bottom, left, right], axis=1)  # (N, 4)
        return Maps(ys.astype(np.float32), np.ascontiguousarray(xs, np.float32), holes)

    def colours(self, key: int, rows: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray | None:
        """Colour matrices of images with row numbers `rows` (N,): float32 (N, 3, 4), None if none vary.

        Each acts on a pixel's (red, green, blue, 1), normalised by `mean` and `std` (3,). On the unnormalised colour
        it multiplies by a brightness, then scales its distance from the mean colour by a contrast, then that from the
        pixel's own luma by a saturation: factors uniform in 1 - x to 1 + x. torchvision's ColorJitter differs in the
        order, which is random there, in the mean colour, which is the image's own mean grey there, and in clipping
        at black and white. A function of (key, row).
        """
        reach = np.array([self.brightness, self.contrast, self.saturation])  # (3,)
        if not reach.any():
            return None
        draws = uniform(key, rows, 3).astype(np.float64)  # (N, 3)
        brightness, contrast, saturation = (1.0 + reach * (2.0 * draws - 1.0)).T[:, :, None, None]  # (N, 1, 1) each
        centre, spread = np.asarray(mean, np.float64)[:, None], np.asarray(std, np.float64)[:, None]  # (3, 1) each
        saturate = saturation * np.eye(3) + (1.0 - saturation) * _LUMA  # (N, 3, 3)
        linear = saturate * (contrast * brightness)  # (N, 3, 3)
        constant = saturate @ ((1.0 - contrast) * centre)  # (N, 3, 1)
        # The unnormalised colour is centre + spread * normalised.
        constant = constant + linear @ centre - centre  # (N, 3, 1)
        return (np.concatenate([linear * spread.T, constant], axis=2) / spread).astype(np.float32)  # (N, 3, 4)


def identity_maps(count: int, height: int, width: int) -> Maps:
    """The maps of `count` images that change nothing, for evaluation."""
    ys = np.broadcast_to(np.arange(height, dtype=np.float32), (count, height))  # (N, H)
    xs = np.broadcast_to(np.arange(width, dtype=np.float32), (count, width))  # (N, W)
    return Maps(np.ascontiguousarray(ys), np.ascontiguousarray(xs), None)


def alternate_flips(key: int, rows: np.ndarray, epoch: int) -> np.ndarray:
    """Which of `rows` (N,) are mirrored in `epoch`, from 0: bool (N,); a random half, and in the next epoch the others.

    So a network sees both versions of every image in any two epochs (Jordan, 2024). Use one `key` for all epochs.
    """
    first = uniform(key, rows, 1)[:, 0] < 0.5  # (N,)
    return first if epoch % 2 == 0 else ~first


def span(draw: np.ndarray, fraction: np.ndarray | float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop pixel of an interval centred at `draw` (N,), 0 to 1 of `size`, and clipped to it: int64 (N,) each.

    Its length before clipping is `fraction`, () or (N,), of `size`.
    """
    length = np.rint(np.multiply(fraction, size)).astype(np.int64)  # () or (N,)
    start = np.floor(draw * size).astype(np.int64) - length // 2  # (N,)
    return np.clip(start, 0, size), np.clip(start + length, 0, size)


def reflect(positions: np.ndarray, size: int) -> np.ndarray:
    """`positions` beyond the border, mirrored at the outermost pixels of `size`."""
    inside = np.abs(positions)
    return np.clip(np.where(inside > size - 1, 2 * (size - 1) - inside, inside), 0, size - 1)


def _random_integers(draw: np.ndarray, limit: float) -> np.ndarray:
    """Uniform integers from -limit to limit, rounded, from uniform draws (N,) in 0 to 1: (N,)."""
    limit = round(limit)
    return np.floor(draw * (2 * limit + 1)) - limit


def _crop(positions: np.ndarray, size: int, fraction: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """`positions` (N, size) mapped into a randomly placed interval of `fraction` (N,) of the side, by pixel centres."""
    start = draw * (1.0 - fraction) * size  # (N,)
    return np.clip(start[:, None] + (positions + 0.5) * fraction[:, None] - 0.5, 0, size - 1)  # (N, size)
