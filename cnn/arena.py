"""A flat vector with named views: all parameters, all gradients or all state of a network.

Clipping and averaging are then one call each. Parameters that are trained alike are contiguous, so that the optimizer
step is one call per group, in which weight decay applies to a prefix.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from cnn.backends.base import Array, Backend
from cnn.errors import ShapeError

Shape = tuple[int, ...]
MAX_SIZE = 2**40  # 4 TB of float32: beyond it, arrays fail in other ways than for lack of memory
# A layer's arrays by name, or a container's trees by the name of the layer.
Tree = dict[str, Any]
# (shape, key) -> float64 values on the host
Initialiser = Callable[[Shape, int], np.ndarray]


@dataclass(frozen=True)
class Spec:
    """One named array of a layer.

    name: dotted, such as `block1.conv.weight`.
    decay: whether weight decay applies.
    lr_factor: multiplies the learning rate; the weight decay per step stays the same.
    trained_until: the fraction of the training's steps after which it is frozen; 0: never trained.
    momentum: of state called `mean` or `variance`, the running statistics of a batch norm, how far a step moves them.
    pixels: values per image and channel that such statistics are computed from.
    """

    name: str
    shape: Shape
    initialise: Initialiser = field(repr=False)  # an address in memory says nothing in a message
    decay: bool = False
    lr_factor: float = 1.0
    trained_until: float = 1.0
    momentum: float | None = None
    pixels: int = 1

    def under(self, prefix: str) -> "Spec":
        """The same array inside a container, with `prefix` before its name."""
        return replace(self, name=f"{prefix}.{self.name}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Group(NamedTuple):
    """Parameters trained alike: a slice of the flat vector, with weight decay on its first `decayed` entries."""

    first: int
    last: int
    decayed: int
    lr_factor: float
    trained_until: float

    @property
    def span(self) -> slice:
        return slice(self.first, self.last)


class Arena:
    """A flat vector (`flat`, shape (size,)) and its views, by dotted name (`views`) and as a tree (`tree`)."""

    def __init__(self, specs: Sequence[Spec], backend: Backend, dtype: Any = np.float32) -> None:
        # Parameters that are trained longest come first, so that those not yet frozen are always one slice; within a
        # group, those with weight decay come first. Otherwise the stable sort keeps the order of the layers.
        self.specs = sorted(specs, key=lambda spec: (-spec.trained_until, spec.lr_factor, not spec.decay))
        self.size = sum(spec.size for spec in self.specs)
        if self.size > MAX_SIZE:
            largest = max(specs, key=lambda spec: spec.size)
            shape = "×".join(map(str, largest.shape))
            raise ShapeError(
                f"expected at most {MAX_SIZE:,} values in a network, found {self.size:,}, {shape} of them in"
                f" {largest.name}: choose a smaller model"
            )
        self.groups = tuple(_groups(self.specs))
        self.backend = backend
        self.flat: Array = backend.zeros((self.size,), dtype)  # (size,)
        self.views: dict[str, Array] = {}
        self.tree: Tree = {}
        offset = 0
        for spec in self.specs:
            view = self.flat[offset : offset + spec.size].reshape(spec.shape)  # spec.shape
            offset += spec.size
            self.views[spec.name] = view
            *parents, leaf = spec.name.split(".")
            node = self.tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = view

    def trained_groups(self, progress: float) -> list[Group]:
        """The groups not yet frozen after the fraction `progress` of the training's steps: a prefix of all groups."""
        return [group for group in self.groups if group.trained_until >= 1.0 or progress < group.trained_until]

    def initialise(self, key_of_name: Callable[[str], int]) -> None:
        """Initialise every view, with the random key `key_of_name(name)`."""
        for spec in self.specs:
            self.assign(spec.name, spec.initialise(spec.shape, key_of_name(spec.name)))

    def assign(self, name: str, values: np.ndarray) -> None:
        """Copy host values of the view's shape into the view `name`."""
        view = self.views[name]
        if np.shape(values) != view.shape:
            found = np.shape(values)
            raise ShapeError(f"{name}: expected initial values of {view.shape}, found {found}; correct the initialiser")
        view[...] = self.backend.asarray(values.astype(self.flat.dtype, copy=False))

    def to_host(self) -> dict[str, np.ndarray]:
        """Copies of all views on the host, by name."""
        return {name: self.backend.to_host(view) for name, view in self.views.items()}


def _groups(specs: Sequence[Spec]) -> Iterator[Group]:
    """The groups of sorted `specs`, in order."""
    first = 0
    for (lr_factor, trained_until), run in groupby(specs, lambda spec: (spec.lr_factor, spec.trained_until)):
        members = list(run)
        last = first + sum(spec.size for spec in members)
        yield Group(first, last, sum(spec.size for spec in members if spec.decay), lr_factor, trained_until)
        first = last
