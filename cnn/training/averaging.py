"""Averages of the weights over the steps of a training: lookahead, and an exponential moving average."""

from dataclasses import dataclass
from typing import ClassVar

from cnn.backends.base import Array
from cnn.errors import RecipeError, number
from cnn.network import Network


@dataclass(frozen=True)
class Lookahead:
    """Lookahead (Zhang et al., 2019; Jordan, 2024): every few steps the weights are reset to a slow moving average.

    every: number of steps between resets; 0 is off. The end of an epoch resets too, so that the average is evaluated.
    start: the fraction of the training's steps before the average begins.
    decay: how much of the average a single step leaves at the very end of the training.
    power: before the end, the decay is multiplied by (fraction of the steps done) ** power.

    Raises `RecipeError` for a value out of range.
    """

    slots: ClassVar[tuple[str, str]] = ("average", "average_state")
    every: int = 0
    start: float = 0.3
    decay: float = 0.95
    power: float = 3.0

    def __post_init__(self) -> None:
        for name, highest in (("every", float("inf")), ("start", 1.0), ("decay", 1.0), ("power", float("inf"))):
            if not 0.0 <= number(getattr(self, name)) <= highest:
                raise RecipeError(f"lookahead {name}: expected 0 to {highest:g}, found {getattr(self, name)}")

    def first_step(self, total: int) -> int:
        """The step, counted from 1, after which the average begins, as a copy of the weights."""
        return self.every * (int(self.start * total) // self.every + 1)

    def decay_at(self, step: int, total: int) -> float:
        """The average's own weight, 0 to 1, when the weights after `step` of `total` steps join it."""
        return self.decay**self.every * (step / total) ** self.power

    def update(self, slots: dict[str, Array], network: Network, step: int, total: int, epoch_steps: int) -> None:
        """Update the average in `slots` after `step` of `total` steps, and reset `network` to it where one is due."""
        if not self.every or step < self.first_step(total):
            return
        joins = step % self.every == 0
        if not joins and step % epoch_steps:
            return
        decay = self.decay_at(step, total) if joins else 1.0
        # A training resumed with fewer epochs may be past the first step already, its average still empty.
        begins = step == self.first_step(total) or not slots["average"].any()
        for name, arena in zip(self.slots, (network.parameters, network.state), strict=True):
            average, weights = slots[name], arena.flat  # (size,) each
            if begins:
                average[...] = weights
            else:
                average += (1.0 - decay) * (weights - average)
                weights[...] = average


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of weights and state (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017).

    The average is evaluated and saved; training continues on the raw weights.

    horizon: how far back it reaches, as a fraction of the training's steps; 0 is off. During the first `horizon`, it
        is the plain mean of all steps so far.

    Raises `RecipeError` for a horizon outside of 0 to 1.
    """

    slots: ClassVar[tuple[str, str]] = ("ema", "ema_state")
    horizon: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= number(self.horizon) <= 1.0:
            raise RecipeError(f"ema horizon: expected 0 to 1, found {self.horizon}")

    def decay_at(self, step: int, total: int) -> float:
        """The average's own weight, 0 to 1, when the weights after `step` of `total` steps join it."""
        return 1.0 - 1.0 / max(1.0, min(step, self.horizon * total))

    def update(self, slots: dict[str, Array], network: Network, step: int, total: int) -> None:
        """Let the weights and state of `network`, after `step` of `total` steps, join the average in `slots`."""
        if not self.horizon:
            return
        joining = 1.0 - self.decay_at(step, total)
        for name, arena in zip(self.slots, (network.parameters, network.state), strict=True):
            slots[name] += joining * (arena.flat - slots[name])  # (size,)
