"""Lookahead: the weights go back, every few steps, to an average of where they have been."""

from dataclasses import dataclass

from cnn.errors import RecipeError


@dataclass(frozen=True)
class Lookahead:
    """Weights that run ahead of their average, and are brought back to it (Zhang et al., 2019; Jordan, 2024).

    every: after so many steps; 0 is off. At the end of an epoch too, so that it is the average that is evaluated.
    start: the share of the training's steps before the average begins.
    decay: how much of the average a single step leaves at the very end of the training.
    power: before that it is less, by the share of the steps that are done to this power.
    """

    every: int = 0
    start: float = 0.3
    decay: float = 0.95
    power: float = 3.0

    def __post_init__(self) -> None:
        for name, most in (("every", float("inf")), ("start", 1.0), ("decay", 1.0), ("power", float("inf"))):
            if not 0.0 <= getattr(self, name) <= most:
                raise RecipeError(f"lookahead {name}: expected 0 to {most:g}, found {getattr(self, name)}")

    def first(self, total: int) -> int:
        """The step, counted from 1, after which the average begins: as the weights then are."""
        return self.every * (int(self.start * total) // self.every + 1)

    def kept(self, step: int, total: int) -> float:
        """The share of the average that stays when the weights after `step` of `total` steps join it."""
        return self.decay**self.every * (step / total) ** self.power
