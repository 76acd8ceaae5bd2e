"""Averages of the weights over the steps of a training: lookahead, and an exponential moving average."""

import math
from dataclasses import dataclass
from typing import ClassVar

from cnn.backends.base import Array
from cnn.errors import check_range
from cnn.network import Network


@dataclass(frozen=True)
class Lookahead:
    """Lookahead (Zhang et al., 2019; Jordan, 2024): every few steps the weights are reset to a slow moving average.

    every: number of steps between resets; 0 is off. The end of an epoch resets too, so that the average is evaluated.
    start: the fraction of the training's steps before the average begins.
    decay: the weight of the old average in an update, per step since the last one, at the end of the training.
    power: earlier in the training, that weight is multiplied by (fraction of the steps done) ** power.

    Raises `RecipeError` for a value out of range.
    """

    slots: ClassVar[tuple[str, str]] = ("average", "average_state")
    every: int = 0
    start: float = 0.3
    decay: float = 0.95
    power: float = 3.0

    def __post_init__(self) -> None:
        for name, highest in (("every", math.inf), ("start", 1), ("decay", 1), ("power", math.inf)):
            check_range(f"lookahead {name}", getattr(self, name), 0, highest)

    def first_step(self, total: int) -> int:
        """The step, counted from 1, after which the average begins, as a copy of the weights."""
        return self.every * (int(self.start * total) // self.every + 1)

    def decay_at(self, step: int, total: int) -> float:
        """The weight of the old average, 0 to 1, in its update after `step` of `total` steps."""
        return self.decay**self.every * (step / total) ** self.power

    def update(
        self, slots: dict[str, Array], network: Network, outcome: Array, begun: bool,
        step: int, total: int, epoch_steps: int,
    ) -> bool:
        """Update the average in `slots` after `step` of `total` steps, and reset `network` to it, if it is time.

        `begun`: whether there is an average yet. Returns whether there is one now. Where the step's `outcome` is not
        finite, nothing changes.
        """
        if not self.every or step < self.first_step(total):
            return begun
        due = step % self.every == 0
        if not due and step % epoch_steps:
            return begun
        decay = self.decay_at(step, total) if due else 1.0  # at the end of an epoch the average does not change
        # A training resumed with fewer epochs may be past the first step without an average.
        begins, backend = step == self.first_step(total) or not begun, network.backend
        for name, arena in zip(self.slots, (network.parameters, network.state), strict=True):
            average, weights = slots[name], arena.flat  # (size,) each
            if begins:
                backend.copy(average, weights, outcome)
            else:
                backend.average(average, weights, 1.0 - decay, outcome)
                backend.copy(weights, average, outcome)
        return True


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of weights and state (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017).

    The average is evaluated and saved; training continues on the raw weights.

    horizon: the length of the average, as a fraction of the training's steps; 0 is off. During the first `horizon`, it
        is the plain mean of all steps so far.

    Raises `RecipeError` for a horizon outside of 0 to 1.
    """

    slots: ClassVar[tuple[str, str]] = ("ema", "ema_state")
    horizon: float = 0.0

    def __post_init__(self) -> None:
        check_range("ema horizon", self.horizon, 0, 1)

    def decay_at(self, step: int, total: int) -> float:
        """The weight of the old average, 0 to 1, in its update after `step` of `total` steps."""
        return 1.0 - 1.0 / max(1.0, min(step, self.horizon * total))

    def update(self, slots: dict[str, Array], network: Network, outcome: Array, step: int, total: int) -> None:
        """Update the average in `slots` with the weights and state of `network` after `step` of `total` steps.

        Where the step's `outcome` is not finite, nothing changes.
        """
        if not self.horizon:
            return
        rate = 1.0 - self.decay_at(step, total)
        for name, arena in zip(self.slots, (network.parameters, network.state), strict=True):
            network.backend.average(slots[name], arena.flat, rate, outcome)
