"""Dropout (Srivastava et al., 2014)."""

from dataclasses import dataclass

from cnn.arena import Shape, Tree
from cnn.backends.base import Array
from cnn.errors import check_range
from cnn.layers.base import Cache, Run, Specs
from cnn.rng import uniform


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
        xp = run.backend.xp
        rows = xp.arange(len(x)) if run.rows is None else run.rows  # (N,)
        draws = uniform(run.key, rows, x[0].size, xp).reshape(x.shape)  # shape of x
        mask = (draws >= self.rate).astype(x.dtype) / x.dtype.type(1.0 - self.rate)  # shape of x
        return x * mask, mask

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        return dy if cache is None else dy * cache
