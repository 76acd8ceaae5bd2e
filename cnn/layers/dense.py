"""Fully connected layers, and flattening of images to vectors."""

import math
from dataclasses import dataclass

from cnn.arena import Initialiser, Shape, Spec, Tree
from cnn.backends.base import Array
from cnn.errors import ShapeError
from cnn.initialise import lecun_normal, zeros
from cnn.layers.base import Cache, Run, Specs


@dataclass(frozen=True)
class Dense:
    """Fully connected layer, x @ weight + bias: (N, C) -> (N, units). `initialise` gives the initial weights."""

    units: int
    bias: bool = True
    initialise: Initialiser = lecun_normal

    def specs(self, in_shape: Shape) -> Specs:
        if len(in_shape) != 1:
            raise ShapeError(f"{self} expects vectors, found shape {in_shape}; put Flatten or a global pool before")
        parameters = [Spec("weight", (in_shape[0], self.units), self.initialise, decay=True)]
        if self.bias:
            parameters.append(Spec("bias", (self.units,), zeros))
        return Specs((self.units,), tuple(parameters))

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        return run.backend.dense(x, p["weight"], p.get("bias")), x  # (N, units)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        x = cache  # (N, C)
        return run.backend.dense_backward(dy, x, p["weight"], g["weight"], g.get("bias"), run.need_dx)  # (N, C)


@dataclass(frozen=True)
class Flatten:
    """Reshape each image to a vector: (N, H, W, C) -> (N, H*W*C)."""

    def specs(self, in_shape: Shape) -> Specs:
        return Specs((math.prod(in_shape),))

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        return run.backend.flatten(x), (x.shape, x.dtype)  # (N, H*W*C)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        shape, dtype = cache  # (N, H, W, C)
        return run.backend.flatten_backward(dy, shape, dtype)  # (N, H, W, C)
