"""Dropout (Srivastava et al., 2014)."""

from dataclasses import dataclass

from cnn.arena import Shape, Tree
from cnn.backends.base import Array
from cnn.errors import check_range
from cnn.layers.base import Cache, Run, Specs


@dataclass(frozen=True)
class Dropout:
    """During training, zero each value with probability `rate`; in inference, the identity.

    The other values are scaled by 1 / (1 - rate), so that the mean stays the same. Raises `RecipeError` for a rate out
    of range.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        check_range("dropout rate", self.rate, 0, below=1)

    def specs(self, in_shape: Shape) -> Specs:
        return Specs(in_shape)

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        if not run.training or self.rate == 0.0:
            return x, None
        return run.backend.dropout(x, self.rate, run.key, run.rows), None  # shape of x

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        if not run.training or self.rate == 0.0:
            return dy
        return run.backend.dropout(dy, self.rate, run.key, run.rows)  # shape of x; the draws are the same again
