"""How a batch is divided into micro-batches, and an epoch into lanes.

    batch k  │ micro-batch 0 │ micro-batch 1 │ micro-batch 2 │
                   lane 0          lane 1          lane 2

Micro-batch j of every batch comes out of lane j, so a process that computes some of the micro-batches reads only their
lanes. The last batch of an epoch may have fewer rows; its micro-batches are filled in order, so the later ones have
fewer rows, or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class MicroBatches:
    """The division of an epoch of `rows` rows in batches of `batch_size`.

    micro_batch  rows of a micro-batch; the last one of a batch may have fewer. 0: as many as a batch
    """

    rows: int
    batch_size: int
    micro_batch: int = 0

    @property
    def lanes(self) -> int:
        """Number of lanes, and of the micro-batches of a batch."""
        return -(-self.batch_size // self._size)

    @property
    def steps(self) -> int:
        """Number of batches."""
        return -(-self.rows // self.batch_size)

    @property
    def count(self) -> int:
        """Number of micro-batches in the epoch, without empty ones."""
        whole, rest = divmod(self.rows, self.batch_size)
        return whole * self.lanes + -(-rest // self._size)

    @property
    def _size(self) -> int:
        return min(self.micro_batch or self.batch_size, self.batch_size)

    def batch_rows(self, step: int) -> int:
        """Rows of the batch of a step."""
        return min(self.batch_size, self.rows - step * self.batch_size)

    def micro_rows(self, step: int, lane: int) -> int:
        """Rows of a micro-batch of the batch of a step."""
        return max(0, min(self._size, self.batch_rows(step) - lane * self._size))

    def full_rows(self, lane: int) -> int:
        """Rows of a micro-batch of a full batch."""
        return min(self._size, self.batch_size - lane * self._size)

    def position(self, step: int, lane: int) -> int:
        """Rows of a lane that come before a step; after the last step, all."""
        if step < self.steps:
            return step * self.full_rows(lane)
        return (self.steps - 1) * self.full_rows(lane) + self.micro_rows(self.steps - 1, lane) if self.steps else 0

    def lane_starts(self) -> list[int]:
        """The number of rows in the lanes before each one, and in all of them."""
        return [0, *accumulate(self.position(self.steps, lane) for lane in range(self.lanes))]
