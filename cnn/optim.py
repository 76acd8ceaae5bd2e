"""Optimizers: one call over the flat vectors of weights, gradients and their own memory ("slots")."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from cnn.arena import Arena
from cnn.backend import Array, Backend
from cnn.errors import RecipeError


class Optimizer(Protocol):
    """Frozen hyperparameters; `lr` is the peak learning rate, which a schedule scales step by step."""

    slots: ClassVar[tuple[str, ...]]

    @property
    def lr(self) -> float: ...

    def update(
        self, backend: Backend, parameters: Arena, gradient: Array, slots: dict[str, Array],
        gradient_scale: float, lr: float, step: int,
    ) -> None:
        """Move the parameters against `gradient_scale * gradient` (size,); `step` counts from 1."""
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, by default Nesterov's (Sutskever et al., 2013).

    Weight decay is added to the gradient of weight matrices and kernels; biases and batch norm take none.
    """

    slots: ClassVar[tuple[str, ...]] = ("velocity",)
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        _check(lr=self.lr, weight_decay=self.weight_decay)
        _check_decay(momentum=self.momentum)

    def update(
        self, backend: Backend, parameters: Arena, gradient: Array, slots: dict[str, Array],
        gradient_scale: float, lr: float, step: int,
    ) -> None:
        backend.sgd_step(
            parameters.flat, gradient, slots["velocity"], parameters.decayed, gradient_scale,
            lr, self.momentum, self.nesterov, self.weight_decay,
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
        gradient_scale: float, lr: float, step: int,
    ) -> None:
        backend.adamw_step(
            parameters.flat, gradient, slots["first_moment"], slots["second_moment"], parameters.decayed,
            gradient_scale, lr, self.beta1, self.beta2, self.epsilon, self.weight_decay, step,
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
