"""Learning-rate schedules: functions from the step to a factor, 0 to 1, of the optimizer's peak rate.

`warmup` is the fraction of all steps in which the factor first rises linearly from 0 to 1.

>>> schedule = logpose.schedules.Cosine(warmup=0.0)
>>> [round(schedule.factor(step, 100), 2) for step in (0, 50, 99)]
[1.0, 0.5, 0.0]
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from cnn.errors import check_range


class Schedule(Protocol):
    """A frozen dataclass of a schedule's options."""

    def factor(self, step: int, total: int) -> float:
        """Return the factor, 0 to 1, of step `step`, counted from 0, of `total` steps."""
        ...


@dataclass(frozen=True)
class _WithWarmup(ABC):
    """A linear warm-up, and then `after_warmup`. Raises `RecipeError` for a `warmup` out of range."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_range("warmup", self.warmup, 0, below=1)

    def factor(self, step: int, total: int) -> float:
        warm_steps = self.warmup * total
        if step < warm_steps:
            # The middle of the step, so that the rate of the first is not 0.
            return (step + 0.5) / warm_steps
        return self.after_warmup((step - warm_steps) / max(total - warm_steps, 1.0))

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """Return the factor after the fraction `progress` of the steps that follow the warm-up."""


@dataclass(frozen=True)
class Constant(_WithWarmup):
    """Constant peak rate."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Step(_WithWarmup):
    """Step decay: multiplied by `gamma` at each milestone, a fraction of the steps after the warm-up."""

    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1

    def after_warmup(self, progress: float) -> float:
        return self.gamma ** sum(progress >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Cosine(_WithWarmup):
    """Cosine decay from the peak to `floor` times the peak, without restarts (Loshchilov and Hutter, 2017)."""

    warmup: float = 0.1
    floor: float = 0.0

    def after_warmup(self, progress: float) -> float:
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class Triangular(_WithWarmup):
    """Linear warm-up from `start` times the peak, then linear decay to `floor` times the peak (Smith, 2017)."""

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
