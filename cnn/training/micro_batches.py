"""Micro-batches: a step's batch in portions, whose results are added up in a fixed order.

A batch of B images is ceil(B / m) micro-batches of m consecutive images, the last one perhaps of fewer. The result of a
micro-batch depends only on its images, the weights and the step: batch norm's statistics are its own (ghost batch norm;
Hoffer et al., 2017), and mixing stays inside. Results are summed by a binary tree over the indices of the micro-batches
in the batch: the sum of [0, 2^k) is that of its first half plus that of its second half, and micro-batches that do not
exist are skipped.

           +
        /     \\
       +       +            of five micro-batches, or of seven of which two have no images
      / \\     /
     +   +   4
    /|   |\\
    0 1  2 3

So the bits of a step do not depend on who computes which micro-batch, nor when: a worker that computes a run of them
adds what the tree adds within that run, and the rest is added where all such partial sums come together. In the order
of the indices, no more than one partial sum per level of the tree exists at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cnn.arena import Arena
from cnn.backends.base import MicroSums, StatisticsLayout
from cnn.errors import RecipeError
from cnn.inputs.device_images import DeviceRows
from cnn.inputs.training_inputs import MicroBatch
from cnn.network import Network


def split_batch(images: np.ndarray | DeviceRows, labels: np.ndarray, rows: np.ndarray, size: int) -> list[MicroBatch]:
    """Split a batch, uint8 (B, H, W, 3), (B,) and (B,), into micro-batches of `size` consecutive images."""
    parts = []
    for first in range(0, max(len(labels), 1), size):
        part = slice(first, min(first + size, len(labels)))
        own = (  # (m, H, W, 3)
            DeviceRows(images.pixels, part.stop - first) if isinstance(images, DeviceRows) else images[part]
        )
        parts.append(MicroBatch(own, labels[part], rows[part]))
    return parts


@dataclass(frozen=True, eq=False)
class Memory:
    """Arrays for the result of a micro-batch, and for the sum of several.

    gradients: laid out as the network's parameters.
    statistics: laid out as its state; None where a batch is one micro-batch, which moves the state itself.
    """

    gradients: Arena
    statistics: Arena | None


@dataclass(frozen=True, eq=False)
class PartialSum:
    """The sum of micro-batches with indices from `first` to `last` - 1; `memory` is the trainer's that it lies in."""

    first: int
    last: int
    sums: MicroSums
    memory: Memory | None


class TreeSum:
    """Adds up partial sums in the order of their indices, from `first` on.

    merge: adds the second of two sums to the first.
    nodes: sums that wait for others of the same subtree. Those that one worker has at the end, whose indices are a part
        of all, are added to a `TreeSum` from 0 on, in the order of the workers.
    """

    def __init__(self, merge: Callable[[PartialSum, PartialSum], PartialSum], first: int = 0) -> None:
        self._merge, self._first = merge, first
        self.nodes: list[PartialSum] = []

    def add(self, node: PartialSum) -> None:
        """Add the sum of micro-batches with higher indices than all before."""
        self._close(node.first)
        self.nodes.append(node)
        self._close(node.last)

    def total(self) -> PartialSum:
        """The sum of all, after the last one, if `first` is 0."""
        while len(self.nodes) > 1:
            self._merge_last_two()
        return self.nodes[0]

    def _close(self, following: int) -> None:
        """Add up the subtrees that have no index before `_first`, or of `following` or more."""
        while len(self.nodes) > 1:
            left, right = self.nodes[-2:]
            height = (left.first ^ right.first).bit_length()  # of the smallest subtree that has both
            subtree = left.first >> height
            if following >> height == subtree or subtree << height < self._first:
                return
            self._merge_last_two()

    def _merge_last_two(self) -> None:
        right, left = self.nodes.pop(), self.nodes.pop()
        self.nodes.append(self._merge(left, right))


def statistics_layout(network: Network) -> StatisticsLayout:
    """Where the statistics of the batch norms lie in the network's state.

    Raises `RecipeError` where a layer has another state, since nothing is known of how to merge it.
    """
    first, places = 0, dict[str, np.ndarray]()  # each array's entries in the flat vector
    momentum, pixels = [], []  # of each channel
    for spec in network.state.specs:
        name = spec.name.rpartition(".")[2]
        if spec.momentum is None or name not in ("mean", "variance"):
            raise RecipeError(
                f"train.micro_batch: expected layers without a state of their own but batch norm, found {spec.name}; "
                "set train.micro_batch=0"
            )
        places[spec.name] = np.arange(first, first + spec.size, dtype=np.int32)  # (C,)
        first += spec.size
        if name == "mean":
            momentum += [spec.momentum] * spec.size
            pixels += [spec.pixels] * spec.size
    means = [name for name in places if name.rpartition(".")[2] == "mean"]
    variances = [f"{name.removesuffix('mean')}variance" for name in means]
    empty = [np.empty(0, np.int32)]  # (0,)
    to_device = network.backend.asarray
    return StatisticsLayout(
        to_device(np.stack([np.concatenate(empty + [places[name] for name in each]) for each in (means, variances)])),
        to_device(np.array(momentum, network.dtype)),
        to_device(np.array(pixels, np.int32)),
    )
