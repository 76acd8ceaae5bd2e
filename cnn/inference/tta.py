"""Test-time augmentation: outputs are averaged over several views of each image, weighted."""

from typing import NamedTuple

import numpy as np

from cnn.backends.base import Array, Backend
from cnn.inference.folded import FoldedNetwork
from cnn.inputs.augment import Maps, identity_maps, reflect
from cnn.inputs.preprocess import preprocess


class View(NamedTuple):
    """One view of an image: shifted down and right by `shift` 32nds of its side; its outputs count with `weight`."""

    weight: float
    shift: int
    mirrored: bool

    def maps(self, count: int, height: int, width: int) -> Maps:
        """The sampling maps of `count` images of this size; the border is reflected into the uncovered edge."""
        ys, xs, _ = identity_maps(count, height, width)
        ys, xs = (
            reflect(positions - self.shift * max(1, round(size / 32)), size).astype(np.float32)
            for positions, size in ((ys, height), (xs, width))
        )  # (N, H), (N, W)
        return Maps(ys, xs, None).mirrored(np.full(count, self.mirrored))


# By the names that `--views` takes. The weights of each add up to 1.
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (View(1.0, 0, False),),
    "mirror": (View(0.5, 0, False), View(0.5, 0, True)),
    "mirror_shift": (
        View(0.25, 0, False), View(0.25, 0, True),
        View(0.125, 1, False), View(0.125, 1, True), View(0.125, -1, False), View(0.125, -1, True),
    ),
}  # fmt: skip


def tta_outputs(
    backend: Backend, infer: FoldedNetwork, images: np.ndarray, views: str, mean: Array, std: Array
) -> Array:
    """The weighted mean, over `views`, a key of VIEWS, of the outputs for uint8 images (B, H, W, 3): (B, C)."""
    outputs = []
    for view in VIEWS[views]:
        x = preprocess(backend, images, view.maps(*images.shape[:3]), mean, std)  # (B, H, W, 3)
        outputs.append(infer(x) * view.weight)  # (B, C)
    return sum(outputs[1:], outputs[0])
