"""Count sectors and bank conflicts of all kernels that run within a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

MAX_FACTOR = 1.1  # times the fewest sectors, or turns at the banks, that the numbers need


class Cost(NamedTuple):
    """What a line of a kernel costs in one launch.

    requests: loads and stores of a warp.
    factor: sectors of 32 bytes moved, or turns at the banks, over the fewest possible.
    """

    kernel: str
    place: str
    memory: str  # 'global' or 'shared'
    requests: int
    factor: float


@contextmanager
def counted_costs() -> Iterator[list[Cost]]:
    """Costs of all launches within the block; the list grows with each."""
    from cupy._kernels import RawKernel, costs

    counted: list[Cost] = []
    launch = RawKernel.__call__

    def counting(kernel: Any, *arguments: Any, **options: Any) -> None:
        with costs(kernel) as rows:
            launch(kernel, *arguments, **options)
        counted.extend(Cost(kernel.name, *row) for row in rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RawKernel, "__call__", counting)
        yield counted


def wasteful(counted: list[Cost]) -> list[Cost]:
    return [cost for cost in counted if cost.factor > MAX_FACTOR]
