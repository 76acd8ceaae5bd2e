"""What can be wrong with networks, recipes and model files. Every message is one line ending in a remedy."""

from collections.abc import Iterable

from logpose.common.errors import LogposeError, suggest


class NetworkError(LogposeError):
    """Root of the errors of `cnn`."""


class ShapeError(NetworkError):
    """A layer was put where its input does not fit."""


class RecipeError(NetworkError):
    """A hyperparameter has a value that makes no sense."""


class UnknownNameError(RecipeError):
    """A name that is in no registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no {kind} is called '{name}'; {suggest(name, known)}")


class DeviceError(NetworkError):
    """The device asked for cannot be used here."""


class ModelFileError(NetworkError):
    """A model file is missing, truncated, not ours, or does not fit the network."""


class WriteError(NetworkError):
    """A checkpoint could not be written; the one before it is untouched."""

    exit_code = 1


class NonFiniteError(NetworkError):
    """The loss or the gradient became NaN or infinite: the training has diverged."""

    exit_code = 1
