"""Learning-rate schedules: a schedule is a function of the step count.

Each gives a factor from 0 to 1 for the optimizer's peak rate. `warmup` is the share of all steps in which the
factor first climbs in a straight line from 0.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from cnn.errors import RecipeError


class Schedule(Protocol):
    def factor(self, step: int, total: int) -> float:
        """The factor for step number `step`, from 0, of `total` steps."""
        ...


@dataclass(frozen=True)
class _Warm:
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup < 1.0:
            raise RecipeError(f"warmup: expected a share of all steps, 0 or more and less than 1, found {self.warmup}")

    def factor(self, step: int, total: int) -> float:
        warm_steps = self.warmup * total
        if step < warm_steps:
            # Half a step on, so that not even the first step is wasted at a rate of zero.
            return (step + 0.5) / warm_steps
        return self.after_warmup((step - warm_steps) / max(total - warm_steps, 1.0))

    def after_warmup(self, progress: float) -> float:
        """The factor where `progress`, from 0 to 1, of the steps after the warm-up are done."""
        raise RecipeError(f"{type(self).__name__} has no shape after the warm-up; use a named schedule")


@dataclass(frozen=True)
class Constant(_Warm):
    """The peak rate throughout."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Step(_Warm):
    """Multiplied by `gamma` at each milestone, a share of the steps after the warm-up."""

    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1

    def after_warmup(self, progress: float) -> float:
        return self.gamma ** sum(progress >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Cosine(_Warm):
    """Half a cosine from the peak down to `floor` times the peak (Loshchilov and Hutter, 2017)."""

    warmup: float = 0.1
    floor: float = 0.0

    def after_warmup(self, progress: float) -> float:
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class Triangular(_Warm):
    """A straight line from the peak down to `floor` times the peak; with a warm-up, a triangle (Smith, 2017).

    The warm-up begins at `start` times the peak.
    """

    warmup: float = 0.25
    floor: float = 0.0
    start: float = 0.0

    def factor(self, step: int, total: int) -> float:
        factor = super().factor(step, total)
        return self.start + (1.0 - self.start) * factor if step < self.warmup * total else factor

    def after_warmup(self, progress: float) -> float:
        return self.floor + (1.0 - self.floor) * (1.0 - min(progress, 1.0))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "cosine": Cosine,
    "triangular": Triangular,
}
