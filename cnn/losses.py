"""Losses: from the network's outputs and the true classes to one number and its derivative.

Every loss divides by `denominator`, the number of rows in the whole (global) batch, and never by the rows at hand:
parts of a batch can then simply be summed, however uneven they are.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from cnn.backends.base import Array, Backend
from cnn.errors import RecipeError


class Loss(Protocol):
    """Frozen; `targets` are class numbers (N,), or values (N, K): how much of each class there is, of 1 in all."""

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> tuple[Array, Array]:
        """The loss () and its derivative by `outputs` (N, K)."""
        ...

    def probabilities(self, backend: Backend, outputs: Array) -> Array:
        """What the outputs (N, K) say of each class, from 0 to 1: (N, K)."""
        ...


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """-log of the true class's softmax probability, softmax and logarithm as one function.

    Where targets are values, it is the mean over the classes, by these values. `label_smoothing` moves that share of
    the target evenly to all classes (Szegedy et al., 2016). `class_weights`, one for each class, multiply the rows of
    that class, or rows of values by their mean by these; they are not divided by their sum. `balanced` stands for
    weights that let each class count alike: `balanced` replaces it by them.
    """

    label_smoothing: float = 0.1
    class_weights: tuple[float, ...] | Literal["balanced"] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise RecipeError(f"label_smoothing: expected 0 or more and less than 1, found {self.label_smoothing}")
        if self.class_weights != "balanced" and any(not weight >= 0.0 for weight in self.class_weights):
            raise RecipeError(f"class_weights: expected numbers of 0 or more, found {list(self.class_weights)}")

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> tuple[Array, Array]:
        weights = None
        if self.class_weights == "balanced":
            raise RecipeError("class_weights: expected numbers, found 'balanced'; count the classes, and call balanced")
        if self.class_weights:
            if len(self.class_weights) != outputs.shape[1]:
                raise RecipeError(
                    f"class_weights: expected one number for each of the {outputs.shape[1]} classes, "
                    f"found {len(self.class_weights)}"
                )
            weights = backend.asarray(self.class_weights).astype(outputs.dtype)  # (K,)
        return backend.softmax_cross_entropy(outputs, targets, self.label_smoothing, weights, denominator)

    def probabilities(self, backend: Backend, outputs: Array) -> Array:
        return backend.softmax(outputs)

    def balanced(self, counts: np.ndarray) -> "SoftmaxCrossEntropy":
        """The same with numbers for `balanced`, inverse to each class's number of images, `counts` (K,).

        Over all images their mean is 1; a class without any has weight 0.
        """
        if self.class_weights != "balanced":
            return self
        classes = np.count_nonzero(counts)
        return replace(self, class_weights=tuple(counts.sum() / (classes * n) if n else 0.0 for n in counts.tolist()))


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Each class a yes-or-no question of its own, from logits; the sum over classes."""

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> tuple[Array, Array]:
        xp = backend.xp
        target = _one_hot(xp, outputs, targets)  # (N, K)
        # log(1 + exp(z)) - z * t, written so that no exponential overflows.
        rows = xp.maximum(outputs, 0) + xp.log1p(xp.exp(-xp.abs(outputs))) - outputs * target  # (N, K)
        return rows.sum() / denominator, (self.probabilities(backend, outputs) - target) / denominator

    def probabilities(self, backend: Backend, outputs: Array) -> Array:
        return backend.activate("sigmoid", outputs)


@dataclass(frozen=True)
class MeanSquaredError:
    """The squared distance of the outputs from 1 for the true class and 0 for the others; the mean over classes."""

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> tuple[Array, Array]:
        error = outputs - _one_hot(backend.xp, outputs, targets)  # (N, K)
        scale = 1.0 / (denominator * outputs.shape[1])
        return (error * error).sum() * scale, error * (2.0 * scale)

    def probabilities(self, backend: Backend, outputs: Array) -> Array:
        return backend.xp.clip(outputs, 0.0, 1.0)


def _one_hot(xp: Any, outputs: Array, targets: Array) -> Array:
    """Class numbers (N,) as rows of zeros with a one: (N, K); values (N, K) as they are."""
    if targets.ndim == 2:
        return targets
    return (targets[:, None] == xp.arange(outputs.shape[1])).astype(outputs.dtype)


LOSSES: dict[str, type[Loss]] = {
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "mean_squared_error": MeanSquaredError,
}
