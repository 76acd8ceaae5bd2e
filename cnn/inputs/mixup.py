"""Mixing: a training image is blended with another of its batch, and what it shows is a bit of either class.

The draws are a function of (key, row). They become a `Blend`, which the device follows in one pass over the
normalised images (`Backend.blend`), and which turns class numbers into targets.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from cnn.errors import RecipeError, UnknownNameError
from cnn.inputs.augment import span
from cnn.rng import key_of, uniform

Kind = Literal["none", "mixup", "cutmix", "either"]
KINDS: tuple[str, ...] = get_args(Kind)


class Blend(NamedTuple):
    """How each image of a batch is mixed with another; see `Backend.blend`."""

    partners: np.ndarray  # int64 (N,): which image of the batch is mixed in
    shares: np.ndarray  # float32 (N,): how much of a pixel within the box is the image's own
    boxes: np.ndarray  # int64 (N, 4): top, bottom, left, right of where the partner shows
    kept: np.ndarray  # float32 (N,): how much of the whole image is its own

    def targets(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """How much of each class the blended images show, from class numbers (N,): float32 (N, classes)."""
        own = (labels[:, None] == np.arange(classes)).astype(np.float32)  # (N, classes)
        kept = self.kept[:, None]  # (N, 1)
        return kept * own + (1 - kept) * own[self.partners]  # (N, classes)


@dataclass(frozen=True)
class Mix:
    """How training images are mixed.

    kind: `mixup` lets the partner shine through all over (Zhang et al., 2018), `cutmix` pastes a box of it (Yun et
    al., 2019), `either` does one of the two, drawn for each step.
    alpha: how much an image keeps is drawn from Beta(alpha, alpha) for each image: 1 is uniform, less is mostly
    nearly all or nearly nothing.
    share: the share of the steps that mix at all.
    """

    kind: Kind = "none"
    alpha: float = 1.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("mix kind", self.kind, KINDS)
        if not 0.0 < self.alpha < math.inf:
            raise RecipeError(f"mix alpha: expected a number above 0, found {self.alpha}")
        if not 0.0 <= self.share <= 1.0:
            raise RecipeError(f"mix share: expected 0 to 1, found {self.share}")

    def draw(self, key: int, rows: np.ndarray, height: int, width: int) -> Blend | None:
        """How to mix images with numbers `rows` (N,), each with the next of the batch; None for not at all.

        Whether to mix, and which way, is a function of `key`; shares and boxes are one of (key, row).
        """
        whether, which = uniform(key_of(key, "step"), np.zeros(1, np.int64), 2)[0]
        if self.kind == "none" or whether >= self.share:
            return None
        partners = np.roll(np.arange(len(rows)), -1)  # (N,)
        draws = uniform(key_of(key, "rows"), rows, 4).astype(np.float64).T  # (4, N)
        kept = _symmetric_beta(self.alpha, *draws[:2])  # (N,)
        if self.kind == "mixup" or (self.kind == "either" and which < 0.5):
            shares = kept.astype(np.float32)  # (N,)
            return Blend(partners, shares, np.tile((0, height, 0, width), (len(rows), 1)), shares)
        side = np.sqrt(1.0 - kept)  # (N,) share of the image's
        top, bottom = span(draws[2], side, height)
        left, right = span(draws[3], side, width)
        kept = 1.0 - (bottom - top) * (right - left) / (height * width)  # (N,) what the border has cut off is kept
        boxes = np.stack([top, bottom, left, right], axis=1)  # (N, 4)
        return Blend(partners, np.zeros(len(rows), np.float32), boxes, kept.astype(np.float32))


def _symmetric_beta(alpha: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Numbers (N,) from Beta(alpha, alpha), made of two uniform ones (N,) each.

    Devroye ("Random variate generation in one line of code", 1996): Student's t by the polar method, brought to 0..1.
    """
    power = (1.0 - first) ** (1.0 / alpha)  # (N,)
    across = np.cos(2.0 * np.pi * second) * np.sqrt(1.0 - power)  # (N,)
    return 0.5 + 0.5 * across / np.sqrt(across**2 + power)  # (N,)
