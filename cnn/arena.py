"""One flat vector with named views: all parameters, all gradients or all state of a network.

One vector means that clipping, a checkpoint and a sum over ranks are one call each. Parameters that are trained alike
lie side by side, so that the optimizer step is one call for each such group, and weight decay is a slice of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from cnn.backends.base import Array, Backend

Shape = tuple[int, ...]
# A layer's own arrays by name; a container's are trees by the names of its children.
Tree = dict[str, Any]
# (shape, key) -> float64 values on the host
Initialiser = Callable[[Shape, int], np.ndarray]


@dataclass(frozen=True)
class Spec:
    """One named array of a layer.

    name: dotted (`block1.conv.weight`).
    decay: whether weight decay applies.
    lr_factor: how many times faster than the others it learns; weight decay does not grow with it.
    trained: the share of the training's steps, from the first, in which it is trained; 0 freezes it.
    """

    name: str
    shape: Shape
    initialise: Initialiser
    decay: bool = False
    lr_factor: float = 1.0
    trained: float = 1.0

    def under(self, prefix: str) -> "Spec":
        """The same array inside a container, `prefix` before its name."""
        return replace(self, name=f"{prefix}.{self.name}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Group(NamedTuple):
    """Parameters that are trained alike: entries `first` to `last` of the flat vector, the first `decayed` decayed."""

    first: int
    last: int
    decayed: int
    lr_factor: float
    trained: float

    @property
    def where(self) -> slice:
        return slice(self.first, self.last)

    def moves(self, progress: float) -> bool:
        """Whether it is trained where `progress`, from 0 to 1, of the training's steps are done."""
        return self.trained >= 1.0 or progress < self.trained


class Arena:
    """A flat vector (`flat`, shape (size,)) and its views, by dotted name (`views`) and as a tree (`tree`)."""

    def __init__(self, specs: Sequence[Spec], backend: Backend, dtype: Any = np.float32) -> None:
        # Those that are trained longest first, so that what moves is always one slice; decayed first in each group.
        # Else in layer order, as the sort is stable.
        self.specs = sorted(specs, key=lambda spec: (*_alike(spec), not spec.decay))
        self.size = sum(spec.size for spec in self.specs)
        self.groups = _groups(self.specs)
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

    def moving(self, progress: float) -> list[Group]:
        """The groups that are trained where `progress`, from 0 to 1, of the training's steps are done."""
        return [group for group in self.groups if group.moves(progress)]

    def initialise(self, key_of_name: Callable[[str], int]) -> None:
        """Fill every view from its initialiser; `key_of_name` gives each name's random key."""
        for spec in self.specs:
            self.assign(spec.name, spec.initialise(spec.shape, key_of_name(spec.name)))

    def assign(self, name: str, values: np.ndarray) -> None:
        """Copy host values, of the view's shape, into the view called `name`."""
        self.views[name][...] = self.backend.asarray(values.astype(self.flat.dtype, copy=False))

    def to_host(self) -> dict[str, np.ndarray]:
        """A copy of every view on the host, by name."""
        return {spec.name: self.backend.to_host(self.views[spec.name]) for spec in self.specs}


def _alike(spec: Spec) -> tuple[float, float]:
    """What parameters of one group have in common, as a key to sort by."""
    return -spec.trained, spec.lr_factor


def _groups(specs: Sequence[Spec]) -> tuple[Group, ...]:
    """The groups of `specs`, which are sorted, in their order."""
    groups, first = [], 0
    for (minus_trained, lr_factor), alike in groupby(specs, _alike):
        members = list(alike)
        last = first + sum(spec.size for spec in members)
        decayed = sum(spec.size for spec in members if spec.decay)
        groups.append(Group(first, last, decayed, lr_factor, -minus_trained))
        first = last
    return tuple(groups)
