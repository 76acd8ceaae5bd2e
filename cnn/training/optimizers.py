"""Optimizers: one kernel call per group of parameters, over flat vectors of weights, gradients and slots.

Slots are an optimizer's state, such as the velocity. A group's `lr_factor` multiplies its learning rate and divides
its weight decay, so that the decay per step, the product of the two, stays the same.

>>> logpose.optimizers.SGD(lr=0.1, momentum=0.95).slots
('velocity',)
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from cnn.arena import Arena
from cnn.backends.base import Array, Backend
from cnn.errors import check_range


class Optimizer(Protocol):
    """A frozen dataclass of hyperparameters; `lr` is the peak learning rate, which a schedule scales."""

    slots: ClassVar[tuple[str, ...]]  # the names of its state vectors, each of the parameters' size

    @property
    def lr(self) -> float: ...

    def update(
        self, backend: Backend, parameters: Arena, gradient: Array, slots: dict[str, Array],
        outcome: Array, lr: float, step: int, progress: float = 0.0,
    ) -> None:
        """Update `parameters` and `slots` in place, from `gradient` (size,), as `outcome` of `judge_step` says.

        `step` counts from 1. `progress`, 0 to 1, is the fraction of the training's steps that are done; it decides
        which parameters are frozen.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, by default Nesterov's (Sutskever et al., 2013).

    Weight decay applies to weight matrices and kernels, but not to biases and batch norm unless a layer asks for it.
    `decoupled` (Page, 2019; Jordan, 2024) makes the hyperparameters independent: the rate is divided by
    1 + 1 / (1 - momentum), so that more momentum does not lengthen the steps, and `weight_decay` is about the fraction
    that weights lose per step at the peak rate, whatever that rate is.

    Raises `RecipeError` for a value out of range.
    """

    slots: ClassVar[tuple[str, ...]] = ("velocity",)
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decoupled: bool = False

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0)
        check_range("momentum", self.momentum, 0, below=1)
        check_range("weight_decay", self.weight_decay, 0)

    def update(
        self, backend: Backend, parameters: Arena, gradient: Array, slots: dict[str, Array],
        outcome: Array, lr: float, step: int, progress: float = 0.0,
    ) -> None:
        weight_decay = self.weight_decay
        if self.decoupled:
            lr /= 1.0 + 1.0 / (1.0 - self.momentum)
            weight_decay = weight_decay / self.lr if self.lr else 0.0
        for group in parameters.trained_groups(progress):
            at = group.span
            backend.sgd_step(
                parameters.flat[at], gradient[at], slots["velocity"][at], group.decayed, outcome,
                lr * group.lr_factor, self.momentum, self.nesterov, weight_decay / group.lr_factor,
            )


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019). Raises `RecipeError` for a value out of range."""

    slots: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")
    lr: float = 4e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        for name in ("lr", "epsilon", "weight_decay"):
            check_range(name, getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            check_range(name, getattr(self, name), 0, below=1)

    def update(
        self, backend: Backend, parameters: Arena, gradient: Array, slots: dict[str, Array],
        outcome: Array, lr: float, step: int, progress: float = 0.0,
    ) -> None:
        for group in parameters.trained_groups(progress):
            at = group.span
            backend.adamw_step(
                parameters.flat[at], gradient[at], slots["first_moment"][at], slots["second_moment"][at],
                group.decayed, outcome, lr * group.lr_factor, self.beta1, self.beta2, self.epsilon,
                self.weight_decay / group.lr_factor, step,
            )


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adamw": AdamW}
