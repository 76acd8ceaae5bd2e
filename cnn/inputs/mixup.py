"""MixUp and CutMix: blend each training image, and its label, with another of the batch.

Random numbers, functions of (key, row), become a `Blend`. The device applies it in one pass over the normalised images
(`Backend.blend`), and it converts class indices to soft labels.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from cnn.errors import RecipeError, UnknownNameError, check_range
from cnn.inputs.augment import span
from cnn.rng import key_of, uniform

Kind = Literal["none", "mixup", "cutmix", "either"]
KINDS: tuple[str, ...] = get_args(Kind)


class Blend(NamedTuple):
    """Partners and weights of a batch of blended images; see `Backend.blend`."""

    partners: np.ndarray  # int64 (N,): the index of the partner in the batch
    weights: np.ndarray  # float32 (N,): the weight of the image's own pixels inside its box, 0 to 1
    boxes: np.ndarray  # int64 (N, 4): top, bottom, left, right of the box that is blended
    label_weights: np.ndarray  # float32 (N,): the weight of the image's own label, 0 to 1

    def targets(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """Soft labels of the blended images, from class indices (N,): float32 (N, classes), rows sum to 1."""
        one_hot = (labels[:, None] == np.arange(classes)).astype(np.float32)  # (N, classes)
        own = self.label_weights[:, None]  # (N, 1)
        return own * one_hot + (1 - own) * one_hot[self.partners]  # (N, classes)


@dataclass(frozen=True)
class Mix:
    """Settings of MixUp and CutMix.

    kind: `mixup` averages the two images (Zhang et al., 2018), `cutmix` pastes a box of the partner (Yun et al.,
        2019), `either` draws one of the two for each step.
    alpha: the weight of the image itself is drawn from Beta(alpha, alpha): 1 is uniform, less is mostly near 0 or 1.
    share: the fraction of steps that blend at all.

    Raises `RecipeError` for a value out of range, `UnknownNameError` for an unknown kind.
    """

    kind: Kind = "none"
    alpha: float = 1.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("mix kind", self.kind, KINDS)
        if not 0.0 < self.alpha < math.inf:
            raise RecipeError(f"mix alpha: expected a number above 0, found {self.alpha}")
        check_range("mix share", self.share, 0, 1)

    def kind_of_step(self, key: int) -> Literal["none", "mixup", "cutmix"]:
        """How the step of this key is blended."""
        if self.kind == "none":
            return "none"
        blend_draw, kind_draw = uniform(key_of(key, "step"), np.zeros(1, np.int64), 2)[0]
        if blend_draw >= self.share:
            return "none"
        return "mixup" if self.kind == "mixup" or (self.kind == "either" and kind_draw < 0.5) else "cutmix"

    def rows_key(self, key: int) -> int:
        """The key of the draws of each row."""
        return key_of(key, "rows")

    def draw(self, key: int, rows: np.ndarray, height: int, width: int) -> Blend | None:
        """The blend of images with row numbers `rows` (N,), each with the next of the batch; None for no blending.

        Whether to blend, and which kind, is a function of `key`; weights and boxes are functions of (key, row).
        """
        kind = self.kind_of_step(key)
        if kind == "none":
            return None
        partners = np.roll(np.arange(len(rows)), -1)  # (N,)
        draws = uniform(self.rows_key(key), rows, 4).astype(np.float64).T  # (4, N)
        own = _symmetric_beta(self.alpha, *draws[:2])  # (N,)
        if kind == "mixup":
            weights = own.astype(np.float32)  # (N,)
            return Blend(partners, weights, np.tile((0, height, 0, width), (len(rows), 1)), weights)
        side = np.sqrt(1.0 - own)  # (N,) the box's, as a fraction of the image's
        top, bottom = span(draws[2], side, height)
        left, right = span(draws[3], side, width)
        own = 1.0 - (bottom - top) * (right - left) / (height * width)  # (N,) of the box as clipped at the border
        boxes = np.stack([top, bottom, left, right], axis=1)  # (N, 4)
        return Blend(partners, np.zeros(len(rows), np.float32), boxes, own.astype(np.float32))


def _symmetric_beta(alpha: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Numbers (N,) from Beta(alpha, alpha), from two uniform numbers (N,) each.

    Devroye ("Random variate generation in one line of code", 1996): Student's t by the polar method, mapped to 0..1.
    """
    power = (1.0 - first) ** (1.0 / alpha)  # (N,)
    across = np.cos(2.0 * np.pi * second) * np.sqrt(1.0 - power)  # (N,)
    return 0.5 + 0.5 * across / np.sqrt(across**2 + power)  # (N,)
