"""Optimizers: one call for each group of parameters, over the flat vectors of weights, gradients and their own memory.

That memory is called slots. A group's `lr_factor` multiplies its learning rate and divides its weight decay, so that
what decays in a step stays the same.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from cnn.arena import Arena
from cnn.backends.base import Array, Backend
from cnn.errors import RecipeError


class Optimizer(Protocol):
    """Frozen hyperparameters; `lr` is the peak learning rate, which a schedule scales step by step."""

    slots: ClassVar[tuple[str, ...]]

    @property
    def lr(self) -> float: ...

    def update(
        self, backend: Backend, parameters: Arena, gradient: Array, slots: dict[str, Array],
        gradient_scale: float, lr: float, step: int, progress: float = 0.0,
    ) -> None:
        """Move the parameters against `gradient_scale * gradient` (size,); `step` counts from 1.

        `progress`, from 0 to 1, is the share of the training's steps that are done: some parameters stop early.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, by default Nesterov's (Sutskever et al., 2013).

    Weight decay is added to the gradient of weight matrices and kernels; biases and batch norm take none, unless a
    layer says so. `decoupled` lets each number be tuned alone (Page, 2019; Jordan, 2024): the rate is divided by
    1 + 1 / (1 - momentum), so that more momentum makes no longer steps, and `weight_decay` is about the share that
    weights lose in a step at the peak rate, however high that is.
    """

    slots: ClassVar[tuple[str, ...]] = ("velocity",)
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decoupled: bool = False

    def __post_init__(self) -> None:
        _check(lr=self.lr, weight_decay=self.weight_decay)
        _check_decay(momentum=self.momentum)

    def update(
        self, backend: Backend, parameters: Arena, gradient: Array, slots: dict[str, Array],
        gradient_scale: float, lr: float, step: int, progress: float = 0.0,
    ) -> None:
        weight_decay = self.weight_decay
        if self.decoupled:
            lr /= 1.0 + 1.0 / (1.0 - self.momentum)
            weight_decay = weight_decay / self.lr if self.lr else 0.0
        for group in parameters.moving(progress):
            at = group.where
            backend.sgd_step(
                parameters.flat[at], gradient[at], slots["velocity"][at], group.decayed, gradient_scale,
                lr * group.lr_factor, self.momentum, self.nesterov, weight_decay / group.lr_factor,
            )


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    slots: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")
    lr: float = 4e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        _check(lr=self.lr, epsilon=self.epsilon, weight_decay=self.weight_decay)
        _check_decay(beta1=self.beta1, beta2=self.beta2)

    def update(
        self, backend: Backend, parameters: Arena, gradient: Array, slots: dict[str, Array],
        gradient_scale: float, lr: float, step: int, progress: float = 0.0,
    ) -> None:
        for group in parameters.moving(progress):
            at = group.where
            backend.adamw_step(
                parameters.flat[at], gradient[at], slots["first_moment"][at], slots["second_moment"][at],
                group.decayed, gradient_scale, lr * group.lr_factor, self.beta1, self.beta2, self.epsilon,
                self.weight_decay / group.lr_factor, step,
            )


def _check(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value < float("inf"):
            raise RecipeError(f"{name}: expected a number of 0 or more, found {value}")


def _check_decay(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value < 1.0:
            raise RecipeError(f"{name}: expected 0 or more and less than 1, found {value}")


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adamw": AdamW}
