"""Model files: tensors and a description in one safetensors file, never a pickle.

The description is JSON in the safetensors header: what classification needs (`ModelCard`), the state of the training
(`progress`), and a checksum that detects damaged tensors.
"""

import errno
import json
import math
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from cnn.backends.base import Backend
from cnn.errors import ModelFileError, NetworkError, UnknownNameError, WriteError, first_line
from cnn.losses import LOSSES, Loss
from cnn.models import MODELS, Model, build_layers
from cnn.network import Network
from logpose.common.files import write_atomically

FORMAT_VERSION = 1
_ENTRY = "logpose"


@dataclass(frozen=True)
class ModelCard:
    """Architecture, classes and preprocessing of a saved network."""

    model: str
    model_options: dict[str, Any]
    in_shape: tuple[int, int, int]  # (H, W, C)
    class_names: tuple[str, ...]
    fit: str  # how images were resized to H by W
    mean: tuple[float, ...]  # per channel, in 0..255 units
    std: tuple[float, ...]
    loss: str = "softmax_cross_entropy"  # determines how outputs become probabilities
    temperature: float = 1.0  # outputs are divided by it before they become probabilities
    depth: tuple[float, float] | None = None  # values of black and white of grey of more than 8 bits
    model_class: str = ""  # package.module:Class of a user's own model, for the error message only

    def build_model(self) -> Model:
        """Return the model, an instance of its dataclass. Imports nothing.

        Raises `ModelFileError` where the model is not registered, or does not have these options.
        """
        if self.model not in MODELS:
            path = self.model_class or "PACKAGE.MODULE:CLASS"
            module = path.partition(":")[0]
            remedy = f"import {module} first, or give --model {path}"
            if module == "__main__":  # of a notebook or a script, which nothing can import
                remedy = "run the code that defines it first"
            raise ModelFileError(f"this model file needs the model '{self.model}', which is not registered; {remedy}")
        try:
            return MODELS[self.model](**self.model_options)
        except TypeError as error:
            raise ModelFileError(f"model {self.model} does not take {self.model_options}: {error}") from None

    def build_loss(self) -> Loss:
        """Return the loss with default options. Raises `UnknownNameError` for an unknown one."""
        if self.loss not in LOSSES:
            raise UnknownNameError("loss", self.loss, LOSSES)
        return LOSSES[self.loss]()

    def build_network(self, backend: Backend, seed: int | None = 0) -> Network:
        """Return the network, initialised from `seed`; without one, all zeros.

        Raises `ModelFileError` as `build_model` does, and `RecipeError` or `ShapeError` where its layers do not fit.
        """
        layers = build_layers(self.build_model(), self.in_shape, len(self.class_names))
        return Network(layers, self.in_shape, backend, seed)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a model file."""

    path: Path
    card: ModelCard
    tensors: dict[str, np.ndarray]
    progress: dict[str, Any]  # the state of the training; JSON

    def load_into(self, network: Network) -> None:
        """Copy this file's parameters and state into `network`. Raises `ModelFileError` naming file and parameter."""
        try:
            network.load_tensors(self.tensors)
        except ModelFileError as error:
            raise ModelFileError(f"{self.path}: {error}; use a model file of the same architecture") from None


def save_checkpoint(path: Path, card: ModelCard, tensors: dict[str, np.ndarray], progress: dict[str, Any]) -> None:
    """Write a model file atomically. Raises `WriteError`."""
    fields = asdict(card)
    if not card.model_class:
        del fields["model_class"]
    if card.depth is None:
        del fields["depth"]
    header = {"format_version": FORMAT_VERSION, "card": fields, "progress": progress, "crc32": _checksum(tensors)}
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    payload = safetensors.numpy.save(contiguous, {_ENTRY: json.dumps(header)})
    try:
        write_atomically(path, payload)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and run again with --resume" if full else "check the folder and its permissions"
        raise WriteError(f"could not write {path}: {error.strerror}; {remedy}") from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a model file. Raises `ModelFileError` where it is missing, damaged or from another program."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise ModelFileError(f"no model file at {path}; train one first, or check the name") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(
            f"{path} is not a complete model file ({first_line(error)}); it may be truncated: copy it again"
        ) from None
    if _ENTRY not in metadata:
        raise ModelFileError(f"{path} is a safetensors file but not logpose's; use one that `logpose train` wrote")
    try:
        header = json.loads(metadata[_ENTRY])
        version = header["format_version"]
        if version != FORMAT_VERSION:
            raise ModelFileError(
                f"{path} has model format {version}, this logpose reads {FORMAT_VERSION}; train again or upgrade"
            )
        fields = header["card"]
        for name in ("in_shape", "class_names", "mean", "std"):
            fields[name] = tuple(fields[name])
        if fields.get("depth") is not None:
            black, white = fields["depth"]
            if not -math.inf < black < white < math.inf:
                raise ValueError(f"a depth of {black}..{white}")
            fields["depth"] = float(black), float(white)
        fields["model_options"] = {key: _tuples(value) for key, value in fields["model_options"].items()}
        card, progress, checksum = ModelCard(**fields), dict(header["progress"]), header["crc32"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} has a damaged header ({first_line(error)}); copy it again") from None
    if _checksum(tensors) != checksum:
        raise ModelFileError(f"{path} is damaged: its tensors do not match their checksum; copy it again")
    return Checkpoint(path, card, tensors, progress)


def initialise_from(network: Network, card: ModelCard, checkpoint: Checkpoint) -> list[str]:
    """Initialise `network`, described by `card`, from a model file. Returns notes for the user, a line each.

    Where the classes differ, the classifier head keeps its random initialisation. Raises `NetworkError` for a file of
    another model, and `ModelFileError` naming the parameter where anything but the head has another shape.
    """
    saved = checkpoint.card
    if saved.model != card.model:
        raise NetworkError(f"{checkpoint.path} is a {saved.model}, not a {card.model}; use --model {saved.model}")
    tensors, notes = dict(checkpoint.tensors), []
    if saved.class_names != card.class_names:
        tensors |= {name: value for name, value in network.tensors().items() if name.startswith("head.")}
        notes.append(
            f"new classifier head: {checkpoint.path} has {len(saved.class_names)} classes, "
            f"this dataset has {len(card.class_names)} others"
        )
    try:
        Checkpoint(checkpoint.path, saved, tensors, {}).load_into(network)
    except ModelFileError as error:
        (height, width, _), (new_height, new_width, _) = saved.in_shape, card.in_shape
        if (height, width) == (new_height, new_width):
            raise
        raise ModelFileError(
            f"{error}: it was trained on images of {width}×{height}, this dataset has {new_width}×{new_height}"
        ) from None
    return notes


def _checksum(tensors: dict[str, np.ndarray]) -> int:
    """CRC-32 of all names and bytes, in the order of the names."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).data, zlib.crc32(name.encode(), crc))
    return crc


def _tuples(value: Any) -> Any:
    """Convert JSON's lists back to tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
