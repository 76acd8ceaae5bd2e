"""One flat vector with named views: all parameters, all gradients or all state of a network.

One vector means that clipping, the optimizer step, a checkpoint and a sum over ranks are one call each. Vectors
that take weight decay come first, so that weight decay is a slice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnn.backend import Array, Backend

Shape = tuple[int, ...]
# A layer's own arrays by name; a container's are trees by the names of its children.
Tree = dict[str, Any]
# (shape, key) -> float64 values on the host
Initialiser = Callable[[Shape, int], np.ndarray]


@dataclass(frozen=True)
class Spec:
    """One named array of a layer: `name` is dotted (`block1.conv.weight`), `decay` says if weight decay applies."""

    name: str
    shape: Shape
    initialise: Initialiser
    decay: bool = False

    def under(self, prefix: str) -> "Spec":
        """The same array inside a container, `prefix` before its name."""
        return Spec(f"{prefix}.{self.name}", self.shape, self.initialise, self.decay)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Arena:
    """A flat vector (`flat`, shape (size,)) and its views, by dotted name (`views`) and as a tree (`tree`)."""

    def __init__(self, specs: Sequence[Spec], backend: Backend, dtype: Any = np.float32) -> None:
        self.specs = sorted(specs, key=lambda spec: not spec.decay)  # stable: decayed first, else in layer order
        self.size = sum(spec.size for spec in self.specs)
        self.decayed = sum(spec.size for spec in self.specs if spec.decay)
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
