"""Errors of networks, recipes and model files, and the check of a hyperparameter's range."""

import math
import traceback
from collections.abc import Iterable
from numbers import Real
from typing import Any

from logpose.common.errors import LogposeError, suggest


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


class DeviceFailedError(NetworkError):
    """The GPU failed in the middle of the work."""

    exit_code = 1


class DeviceMemoryError(NetworkError):
    """The device has too little memory."""

    exit_code = 1


class ModelFileError(NetworkError):
    """A model file is missing, truncated, from another program, or does not fit the network."""


class ModelReadError(NetworkError):
    """The system failed to read a model file, which says nothing about what is in it."""

    exit_code = 1


class WriteError(NetworkError):
    """A model file could not be written; the previous one is unchanged."""

    exit_code = 1


class NonFiniteError(NetworkError):
    """The loss or the gradient became NaN or infinite: the training has diverged."""

    exit_code = 1


def check_range(
    name: str, value: Any, low: float, high: float = math.inf, *, below: float = math.inf, kind: type = Real
) -> None:
    """Raise `RecipeError` unless `value` is a finite number from `low` to `high`, and less than `below`.

    `kind` is the type of the number: `int` for whole numbers.
    """
    if isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high and value < below:  # type: ignore[operator]
        return
    noun, bounds = "a whole number" if kind is int else "a number", f"of {low:g} or more"
    if high < math.inf:
        bounds = f"from {low:g} to {high:g}"
    elif below < math.inf:
        bounds += f" and less than {below:g}"
    raise RecipeError(f"{name}: expected {noun} {bounds}, found {value!r}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).partition("\n")[0]


# CuPy has no base class for its errors, and may not be installed.


def is_cuda_error(error: BaseException) -> bool:
    """Whether CuPy or CUDA raised it: a failure of the device, or too little of its memory if it is a MemoryError."""
    return any(each.__module__.partition(".")[0] in ("cupy", "cupy_backends") for each in type(error).__mro__)


def cuda_reason(error: BaseException) -> str:
    """The reason in one line, such as 'cudaErrorIllegalAddress: an illegal memory access was encountered'."""
    reason = first_line(error)
    return reason if reason.startswith("cuda") else f"{type(error).__name__}: {reason}"


def release_frames(error: BaseException) -> None:
    """Clear the variables of the functions that `error` ended, so that their arrays are freed."""
    traceback.clear_frames(error.__traceback__)
