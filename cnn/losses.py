"""Losses: a number from the network's outputs and the true classes, and its gradient w.r.t. the outputs.

Every loss divides by `denominator`, the number of rows of the whole batch, not by the number of rows it is given, so
that losses and gradients of slices of a batch add up.

>>> logpose.losses.SoftmaxCrossEntropy(label_smoothing=0.05)
SoftmaxCrossEntropy(label_smoothing=0.05, class_weights=())
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from cnn.backends.base import Array, Backend
from cnn.errors import RecipeError, check_range


class LossResult(NamedTuple):
    """The loss (), its gradient w.r.t. the outputs (N, K), and the number of correct rows (), all on the device."""

    loss: Array
    gradient: Array
    correct: Array


class Loss(Protocol):
    """A frozen dataclass; `targets` are class indices (N,), or soft labels (N, K) whose rows sum to 1."""

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> LossResult:
        """Return the loss of `outputs` (N, K), its gradient, and the number of correct rows."""
        ...

    def probabilities(self, backend: Backend, outputs: Array) -> Array:
        """Return each class's probability, 0 to 1, from outputs (N, K): (N, K)."""
        ...


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """-log of the true class's softmax probability; with soft labels, the mean over classes weighted by them.

    label_smoothing: the fraction of the target that is spread evenly over all classes (Szegedy et al., 2016).
    class_weights: one factor per class for the loss of its rows, not normalised; a row with soft labels gets the mean
        factor, weighted by them. The text 'balanced' stands for factors inverse to the number of images of each class,
        which the method `balanced` computes.

    Raises `RecipeError` for a value out of range.
    """

    label_smoothing: float = 0.1
    class_weights: tuple[float, ...] | Literal["balanced"] = ()

    def __post_init__(self) -> None:
        check_range("label_smoothing", self.label_smoothing, 0, below=1)
        weights = self.class_weights
        if weights != "balanced":
            if not isinstance(weights, tuple):
                raise RecipeError(f"class_weights: expected a tuple of numbers, or 'balanced', found {weights!r}")
            for weight in weights:
                check_range("class_weights", weight, 0)

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> LossResult:
        weights = None
        if self.class_weights == "balanced":
            raise RecipeError("class_weights: expected numbers, found 'balanced'; call .balanced(counts) first")
        if self.class_weights:
            if len(self.class_weights) != outputs.shape[1]:
                raise RecipeError(
                    f"class_weights: expected one number for each of the {outputs.shape[1]} classes, "
                    f"found {len(self.class_weights)}"
                )
            weights = _on_device(backend, self.class_weights, outputs.dtype)  # type: ignore[arg-type]  # (K,)
        return LossResult(
            *backend.softmax_cross_entropy(outputs, targets, self.label_smoothing, weights, denominator)
        )

    def probabilities(self, backend: Backend, outputs: Array) -> Array:
        return backend.softmax(outputs)

    def balanced(self, counts: np.ndarray) -> "SoftmaxCrossEntropy":
        """Replace class_weights='balanced' by weights inverse to each class's number of images, `counts` (K,).

        Over all images their mean is 1; a class without images has weight 0.
        """
        if self.class_weights != "balanced":
            return self
        classes = np.count_nonzero(counts)
        return replace(self, class_weights=tuple(counts.sum() / (classes * n) if n else 0.0 for n in counts.tolist()))


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross-entropy of each class's sigmoid probability, computed from logits; the sum over classes."""

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> LossResult:
        xp = backend.xp
        target = _one_hot(xp, outputs, targets)  # (N, K)
        # log(1 + exp(z)) - z * t, in a form in which no exponential overflows.
        rows = xp.maximum(outputs, 0) + xp.log1p(xp.exp(-xp.abs(outputs))) - outputs * target  # (N, K)
        gradient = (self.probabilities(backend, outputs) - target) / denominator  # (N, K)
        return LossResult(rows.sum() / denominator, gradient, backend.count_correct(outputs, targets))

    def probabilities(self, backend: Backend, outputs: Array) -> Array:
        return backend.activate("sigmoid", outputs)


@dataclass(frozen=True)
class MeanSquaredError:
    """Squared error of the outputs from 1 for the true class and 0 for the others; the mean over classes."""

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> LossResult:
        error = outputs - _one_hot(backend.xp, outputs, targets)  # (N, K)
        scale = 1.0 / (denominator * outputs.shape[1])
        loss, gradient = (error * error).sum() * scale, error * (2.0 * scale)  # (), (N, K)
        return LossResult(loss, gradient, backend.count_correct(outputs, targets))

    def probabilities(self, backend: Backend, outputs: Array) -> Array:
        return backend.xp.clip(outputs, 0.0, 1.0)


@lru_cache(maxsize=4)
def _on_device(backend: Backend, values: tuple[float, ...], dtype: Any) -> Array:
    """The values as an array (K,), which is copied to the device only once."""
    return backend.asarray(values).astype(dtype)


def _one_hot(xp: Any, outputs: Array, targets: Array) -> Array:
    """Class indices (N,) as one-hot rows (N, K); soft labels (N, K) unchanged."""
    if targets.ndim == 2:
        return targets
    return (targets[:, None] == xp.arange(outputs.shape[1])).astype(outputs.dtype)


LOSSES: dict[str, type[Loss]] = {
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "mean_squared_error": MeanSquaredError,
}
