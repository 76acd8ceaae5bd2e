"""The layer protocol. A layer holds hyperparameters only; parameters, gradients and state live in flat vectors."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from cnn.arena import Shape, Spec, Tree
from cnn.backends.base import Array, Backend
from cnn.errors import ShapeError
from cnn.rng import key_of

# What a layer's forward pass stores for its backward pass.
Cache: TypeAlias = Any


class Specs(NamedTuple):
    """A layer's output shape (without the batch axis) and its arrays, for one input shape."""

    out_shape: Shape
    parameters: tuple[Spec, ...] = ()
    state: tuple[Spec, ...] = ()  # arrays updated without a gradient, such as batch norm's running statistics


@dataclass(frozen=True)
class Run:
    """The context of one pass through the network."""

    backend: Backend
    training: bool
    key: int = 0  # random numbers are a function of this key and of `rows`
    rows: Array | None = None  # integers (N,): the images' row numbers in the dataset
    need_dx: bool = True  # whether to compute the gradient w.r.t. this layer's input
    before_norm: bool = False  # whether the next layer is a batch norm, which needs the output's statistics
    sets_statistics: bool = False  # whether batch norm sets its state to this pass's statistics, and does not move it

    def inside(self, name: str, need_dx: bool = True, before_norm: bool = False) -> "Run":
        """The context of the layer `name` of a container, with its own random key."""
        key = key_of(self.key, name) if self.training else self.key
        return replace(self, key=key, need_dx=need_dx, before_norm=before_norm)


class Layer(Protocol):
    """Forward and backward pass of a layer; implementations are frozen dataclasses.

    `p`, `s` and `g` are the trees of its parameters, state and gradients. x is the input and y the output, dx and dy
    are the gradients of the loss w.r.t. them. `forward` returns (y, cache). `backward` *sets* `g` and returns dx, or
    None where `run.need_dx` is false.
    """

    def specs(self, in_shape: Shape) -> Specs: ...

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]: ...

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None: ...


@runtime_checkable
class DataInitialised(Protocol):
    """A layer that computes some of its parameters from training images before the first step."""

    def parameters_from_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute these parameters, by name, from normalised images (N, H, W, C) on the host."""
        ...


def image_shape(layer: object, in_shape: Shape) -> tuple[int, int, int]:
    """Return `in_shape` as (H, W, C). Raises `ShapeError` where it is not of images."""
    if len(in_shape) != 3:
        raise ShapeError(
            f"{layer} expects images (height, width, channels), found shape {in_shape}; put it before Flatten"
        )
    return in_shape[0], in_shape[1], in_shape[2]


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return `value` as (height, width); one number stands for both."""
    return (value, value) if isinstance(value, int) else value
