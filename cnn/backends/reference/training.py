"""Losses and optimizers in plain NumPy. N images, K classes; parameters, gradients and averages are flat vectors."""

import math
from typing import Any

import numpy as np

from cnn.backends.base import CORRECT, LOSS, OK, SCALE, Array, MicroSums, StatisticsLayout


class TrainingKernels:
    """The loss, the sums and the judgement of a step, the optimizers and averages, with arrays of the module `xp`."""

    xp: Any

    # Softmax and cross-entropy as one function, whose gradient w.r.t. the logits is p - target

    def softmax_cross_entropy(
        self, logits: Array, targets: Array, smoothing: float, class_weights: Array | None, denominator: int
    ) -> tuple[Array, Array, Array]:
        """The weighted sum of the rows' cross-entropies, divided by `denominator`, and its gradient w.r.t. the logits.

        `targets` are class indices (N,), or soft labels (N, K) whose rows sum to 1. A row's weight is its class's entry
        in `class_weights` (K,); with soft labels, the mean of the entries weighted by them. The third result is that of
        `count_correct`.
        """
        rows = self.xp.arange(len(targets))  # (N,)
        shifted = logits - logits.max(axis=1, keepdims=True)  # (N, K)
        log_p = shifted - self.xp.log(self.xp.exp(shifted).sum(axis=1, keepdims=True))  # (N, K)
        target = self.xp.full(logits.shape, smoothing / logits.shape[1], logits.dtype)  # (N, K)
        if targets.ndim == 2:
            target += (1.0 - smoothing) * targets.astype(logits.dtype)
        else:
            target[rows, targets] += 1.0 - smoothing
        row_weights = self.xp.full((len(targets), 1), 1.0 / denominator, logits.dtype)  # (N, 1)
        if class_weights is not None:
            weights = targets.astype(logits.dtype) @ class_weights if targets.ndim == 2 else class_weights[targets]
            row_weights *= weights[:, None]
        loss = -(row_weights * target * log_p).sum()  # ()
        gradient = row_weights * (self.xp.exp(log_p) - target)  # (N, K)
        return loss, gradient, self.count_correct(logits, targets)

    def count_correct(self, outputs: Array, targets: Array) -> Array:
        """The number of rows whose largest output (N, K) is that of the class, or of the class with most weight: ()."""
        true = targets if targets.ndim == 1 else targets.argmax(axis=1)  # (N,)
        return (outputs.argmax(axis=1) == true).sum()

    # Micro-batches: gradients, losses and counts are added, batch norm's statistics merged

    def merge_sums(self, first: MicroSums, second: MicroSums, layout: StatisticsLayout) -> MicroSums:
        """Merge the sums of two runs of micro-batches, into the arrays of `first`.

        Statistics by the formula of Chan, Golub and LeVeque (1979). All batch norms have the same weights, since the
        number of their values is that of the images times a constant.
        """
        self._accumulate(first.gradient, second.gradient)
        rows = first.rows + second.rows
        if first.statistics is not None and second.statistics is not None:
            share, (means, variances) = second.rows / rows, layout.places  # (S,) each
            own, other = first.statistics, second.statistics  # (state size,) each
            distance = other[means] - own[means]  # (S,)
            within = (1.0 - share) * own[variances] + share * other[variances]  # (S,)
            own[variances] = within + share * (1.0 - share) * distance**2
            own[means] += share * distance
        loss, correct = first.loss + second.loss, first.correct + second.correct  # () each
        return MicroSums(first.gradient, loss, correct, first.statistics, rows)

    def _accumulate(self, total: Array, values: Array) -> None:
        """Add `values` (size,) to `total` (size,)."""
        total += values

    def move_statistics(
        self, state: Array, statistics: Array, layout: StatisticsLayout, rows: int, outcome: Array
    ) -> None:
        """Move the running statistics in `state` towards those of a whole batch of `rows` images, (state size,) each.

        As `batch_norm_train` does where a batch is one micro-batch, and only if the step is finite.
        """
        if not outcome[OK]:
            return
        xp = self.xp
        means, variances = layout.places  # (S,) each
        mean, variance = statistics[means], statistics[variances]  # (S,) each
        count = rows * layout.pixels.astype(np.int64)  # (S,)
        unbiased = variance * (count / xp.maximum(count - 1, 1)).astype(variance.dtype)  # (S,)
        finite = xp.isfinite(mean) & xp.isfinite(variance)  # (S,)
        for places, new in ((means, mean), (variances, unbiased)):
            state[places] += xp.where(finite, layout.momentum * (new - state[places]), 0)  # (S,)

    # Optimizers: weight decay applies to the first `decayed` entries; the gradient is multiplied by `outcome[SCALE]`.
    # `outcome` (4,) stays on the device: a step that is not finite, and all steps after it, change nothing.

    def judge_step(self, outcome: Array, loss: Array, correct: Array, gradient: Array, clip: float) -> None:
        """Set `outcome` for `loss` (), `correct` () and `gradient` (size,), whose norm is clipped to `clip` (0: never).

        `outcome[OK]` is left at 0, and set to 0 where the loss or the norm is not finite.
        """
        norm = math.sqrt(self.squared_norm(gradient))
        if not (self.xp.isfinite(loss) and math.isfinite(norm)):
            outcome[OK] = 0.0
        outcome[SCALE] = clip / norm if 0.0 < clip < norm else 1.0
        outcome[LOSS], outcome[CORRECT] = loss, correct

    def squared_norm(self, vector: Array) -> float:
        return float(vector.astype(np.float64) @ vector.astype(np.float64))

    def sgd_step(
        self, weights: Array, gradient: Array, velocity: Array, decayed: int, outcome: Array,
        lr: float, momentum: float, nesterov: bool, weight_decay: float,
    ) -> None:
        if not outcome[OK]:
            return
        g = gradient * float(outcome[SCALE])  # (size,)
        g[:decayed] += weight_decay * weights[:decayed]
        velocity *= momentum
        velocity += g
        weights -= lr * (g + momentum * velocity if nesterov else velocity)

    def adamw_step(
        self, weights: Array, gradient: Array, first: Array, second: Array, decayed: int, outcome: Array,
        lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int,
    ) -> None:
        """Loshchilov and Hutter (2019): decoupled weight decay; `step` counts from 1."""
        if not outcome[OK]:
            return
        g = gradient * float(outcome[SCALE])  # (size,)
        first *= beta1
        first += (1.0 - beta1) * g
        second *= beta2
        second += (1.0 - beta2) * g * g
        weights[:decayed] *= 1.0 - lr * weight_decay
        root = self.xp.sqrt(second / (1.0 - beta2**step))  # (size,)
        weights -= (lr / (1.0 - beta1**step)) * first / (root + epsilon)

    def average(self, average: Array, values: Array, rate: float, outcome: Array) -> None:
        """Move `average` (size,) towards `values` (size,) by the fraction `rate`."""
        if outcome[OK]:
            average += rate * (values - average)

    def copy(self, target: Array, values: Array, outcome: Array) -> None:
        """Set `target` (size,) to `values` (size,)."""
        if outcome[OK]:
            target[...] = values
