"""Errors of networks, recipes and model files. Every message is one line that ends in a remedy."""

import math
from collections.abc import Iterable
from numbers import Real

from logpose.common.errors import LogposeError, suggest


def number(value: object) -> float:
    """The value, or NaN, which is in no range, where it is not a number (a bool is none)."""
    return value if isinstance(value, Real) and not isinstance(value, bool) else math.nan  # type: ignore[return-value]


class NetworkError(LogposeError):
    """Root of the errors of `cnn`."""


class ShapeError(NetworkError):
    """A layer does not fit the shape of its input."""


class InputError(NetworkError):
    """An array of images or labels has the wrong type, shape or values."""


class RecipeError(NetworkError):
    """A hyperparameter has an invalid value."""


class UnknownNameError(RecipeError):
    """A name is missing from its registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no {kind} is called '{name}'; {suggest(str(name), known)}")


class DeviceError(NetworkError):
    """The requested device cannot be used on this machine."""


class ModelFileError(NetworkError):
    """A model file is missing, truncated, from another program, or does not fit the network."""


class WriteError(NetworkError):
    """A model file could not be written; the previous one is unchanged."""

    exit_code = 1


class NonFiniteError(NetworkError):
    """The loss or the gradient became NaN or infinite: the training has diverged."""

    exit_code = 1
