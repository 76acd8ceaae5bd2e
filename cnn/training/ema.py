"""The average of the weights over the last steps: what is judged and kept, while training goes on with the weights."""

from dataclasses import dataclass

from cnn.errors import RecipeError


@dataclass(frozen=True)
class EMA:
    """An exponential moving average of weights and state (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017).

    horizon: how far back it reaches, as a share of the training's steps; 0 is off. Until it is filled, all steps count
    alike.
    """

    horizon: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.horizon <= 1.0:
            raise RecipeError(f"ema horizon: expected 0 to 1, found {self.horizon}")

    def kept(self, step: int, total: int) -> float:
        """The share of the average that stays when the weights after `step` of `total` steps join it."""
        return 1.0 - 1.0 / max(1.0, min(step, self.horizon * total))
