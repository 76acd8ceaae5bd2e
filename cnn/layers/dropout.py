"""Dropout: during training, zero a random fraction of the activations (Srivastava et al., 2014)."""

from dataclasses import dataclass

from cnn.arena import Shape, Tree
from cnn.backends.base import Array
from cnn.errors import RecipeError, number
from cnn.layers.base import Cache, Run, Specs
from cnn.rng import uniform


@dataclass(frozen=True)
class Dropout:
    """Zero with probability `rate`, else scaled by 1 / (1 - rate), which keeps the mean; the identity in inference."""

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= number(self.rate) < 1.0:
            raise RecipeError(f"dropout rate: expected 0 or more and less than 1, found {self.rate}")

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
