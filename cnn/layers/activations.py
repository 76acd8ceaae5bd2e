"""Elementwise activations, and softmax."""

from dataclasses import dataclass
from typing import ClassVar

from cnn.arena import Shape, Tree
from cnn.backends.base import Array
from cnn.errors import RecipeError, UnknownNameError
from cnn.layers.base import Cache, Run, Specs


class Activation:
    """y = f(x), elementwise; `kind` is the backend's name of f."""

    kind: ClassVar[str]
    keeps_input: ClassVar[bool] = False  # whether the gradient is computed from x; else from y

    def specs(self, in_shape: Shape) -> Specs:
        return Specs(in_shape)

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        y = run.backend.activate(self.kind, x)  # shape of x
        return y, (x if self.keeps_input else None, y)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        x, y = cache
        return run.backend.activate_backward(self.kind, dy, x, y)  # shape of x


@dataclass(frozen=True)
class ReLU(Activation):
    """max(x, 0)."""

    kind: ClassVar[str] = "relu"


@dataclass(frozen=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    kind: ClassVar[str] = "sigmoid"


@dataclass(frozen=True)
class Tanh(Activation):
    """tanh(x)."""

    kind: ClassVar[str] = "tanh"


@dataclass(frozen=True)
class SiLU(Activation):
    """x * sigmoid(x) (Elfwing, Uchibe and Doya, 2017)."""

    kind: ClassVar[str] = "silu"
    keeps_input: ClassVar[bool] = True


@dataclass(frozen=True)
class GELU(Activation):
    """x * P(Z <= x) for Z standard normal, in the tanh approximation (Hendrycks and Gimpel, 2016)."""

    kind: ClassVar[str] = "gelu"
    keeps_input: ClassVar[bool] = True


@dataclass(frozen=True)
class Scale:
    """y = factor * x, with a fixed factor."""

    factor: float

    def specs(self, in_shape: Shape) -> Specs:
        return Specs(in_shape)

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        return run.backend.scale(x, self.factor), None  # shape of x

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        return run.backend.scale(dy, self.factor)  # shape of x


@dataclass(frozen=True)
class Softmax:
    """exp(x) / sum(exp(x)) over the last axis. For training, use `SoftmaxCrossEntropy` on the logits instead."""

    def specs(self, in_shape: Shape) -> Specs:
        return Specs(in_shape)

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        y = run.backend.softmax(x)  # shape of x
        return y, y

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        return run.backend.softmax_backward(dy, cache)  # shape of x


# By the names that options of layers and models use.
ACTIVATIONS: dict[str, type[Activation]] = {layer.kind: layer for layer in (ReLU, GELU, SiLU, Sigmoid, Tanh)}


def check_activation(name: str, required: bool = False) -> None:
    """Raise `UnknownNameError` unless `name` is an activation's, or empty and not `required`.

    Raises `RecipeError` where it is not text.
    """
    if not isinstance(name, str):
        names = ", ".join(map(repr, ACTIVATIONS))
        raise RecipeError(f"activation: expected a name, found {name!r}; write one of {names}")
    if name not in ACTIVATIONS and (name or required):
        raise UnknownNameError("activation", name, ACTIVATIONS)
