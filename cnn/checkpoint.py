"""Model files: tensors and a description in one safetensors file, never a pickle.

The description is JSON in the safetensors header: what classification needs (`ModelCard`), the state of the training
(`progress`), and a checksum of the whole file. All of it is checked when a file is loaded: a file may be damaged, or
made by another program.
"""

import errno
import hashlib
import json
import os
import re
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from cnn.backends.base import Backend
from cnn.errors import (
    ModelFileError,
    ModelReadError,
    NetworkError,
    NonFiniteError,
    UnknownNameError,
    WriteError,
    first_line,
)  # fmt: skip
from cnn.layers import Sequential
from cnn.losses import LOSSES, Loss
from cnn.models import MODELS, Model, build_layers
from cnn.network import Network, check_tensors
from logpose.common.files import NotAFileError, errors_at, open_regular, read_regular, write_atomically
from logpose.common.records import MAX_CLASSES, MIN_STD, RecordError, is_name, parse_json, parse_record

FORMAT_VERSION = 2
_ENTRY = "logpose"
# The checksum of the whole file, as if its own eight digits were zeros. The header is JSON that holds JSON as text.
_CHECKSUM = re.compile(rb'(\\"crc32\\": ?\\")([0-9a-f]{8})(?=\\")')
_MAX_HEADER = 2**25  # bytes, for a hundred thousand epochs
_MAX_SIDE, _MAX_PIXELS, _MAX_CHANNELS = 2**14, 2**24, 64  # of an image, and of a network
_MAX_COLOUR = 1e9  # in 0..255 units, but users may have others
_MAX_DEPTH = 8  # of lists in an option of a model
FITS = ("pad", "crop", "squash")


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

    def check(self) -> None:
        """Raise RecordError where a value is out of its range. Types are not checked: see `parse_record`."""
        height, width, channels = self.in_shape
        numbers = (*self.mean, *self.std)
        problems = {
            "model": not 0 < len(self.model) < 1000,
            "in_shape": not (min(self.in_shape) > 0 and max(height, width) <= _MAX_SIDE)
            or height * width > _MAX_PIXELS or channels > _MAX_CHANNELS,
            "class_names": not 0 < len(set(self.class_names)) == len(self.class_names) <= MAX_CLASSES
            or not all(map(is_name, self.class_names)),
            "fit": self.fit not in FITS,
            "mean or std": not len(self.mean) == len(self.std) == channels or max(map(abs, numbers)) > _MAX_COLOUR,
            "std": not all(value == 0 or value >= MIN_STD for value in self.std),
            "temperature": not 0.001 <= self.temperature <= 1000,
            "depth": self.depth is not None and not self.depth[0] < self.depth[1],
        }  # fmt: skip
        for name in (name for name, is_wrong in problems.items() if is_wrong):
            value = " and ".join(str(getattr(self, each)) for each in name.split(" or "))
            raise RecordError(f"a {name} of {value[:60]} is out of range")

    def build_network(self, backend: Backend, seed: int | None = 0) -> Network:
        """Return the network, initialised from `seed`; without one, all zeros.

        Raises `ModelFileError` as `build_model` does, and `RecipeError` or `ShapeError` where its layers do not fit.
        """
        layers = build_layers(self.build_model(), self.in_shape, len(self.class_names))
        return Network(layers, self.in_shape, backend, seed)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a model file.

    progress  the state of the training; JSON
    digest    SHA-256 of the file's bytes, in hex
    """

    path: Path
    card: ModelCard
    tensors: dict[str, np.ndarray]
    progress: dict[str, Any]
    digest: str = ""

    def build_network(self, backend: Backend) -> Network:
        """Return the network with the file's parameters and state. Takes no more memory than the file does.

        Raises what `layers` does.
        """
        network = Network(self.layers(self.card), self.card.in_shape, backend, seed=None)
        self.load_into(network)
        return network

    def layers(self, card: ModelCard) -> Sequential:
        """The layers of a card, which the file's tensors must fit: to be called before a network takes memory.

        Raises `ModelFileError` where the model is not registered, or does not fit the tensors.
        """
        model = card.build_model()
        try:
            layers = build_layers(model, card.in_shape, len(card.class_names))
            specs = layers.specs(card.in_shape)
            check_tensors((*specs.parameters, *specs.state), self.tensors)
        except NetworkError as error:
            raise ModelFileError(f"{self.path}: {error}; use a model file that fits its architecture") from None
        return layers

    def load_into(self, network: Network) -> None:
        """Copy this file's parameters and state into `network`. Raises `ModelFileError` naming file and parameter."""
        try:
            network.load_tensors(self.tensors)
        except ModelFileError as error:
            raise ModelFileError(f"{self.path}: {error}; use a model file of the same architecture") from None


def save_checkpoint(path: Path, card: ModelCard, tensors: dict[str, np.ndarray], progress: dict[str, Any]) -> None:
    """Write a model file atomically. Raises `WriteError`, and `NonFiniteError` where a tensor is not finite."""
    fields = asdict(card)
    if not card.model_class:
        del fields["model_class"]
    if card.depth is None:
        del fields["depth"]
    if broken := _first_not_finite(tensors):
        raise NonFiniteError(f"{broken} has values that are not finite, so {path} was not written: training diverged")
    header = {"format_version": FORMAT_VERSION, "crc32": "00000000", "card": fields, "progress": progress}
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    payload = safetensors.numpy.save(contiguous, {_ENTRY: json.dumps(header)})
    payload = _CHECKSUM.sub(rb"\g<1>%08x" % zlib.crc32(payload), payload, count=1)
    try:
        write_atomically(path, payload)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and run again with --resume" if full else "check the folder and its permissions"
        raise WriteError(f"could not write {path}: {error.strerror}; {remedy}") from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a model file.

    Raises `ModelFileError` where it is missing, damaged or from another program; `ModelReadError` where the system
    fails to read it.
    """
    content = _read(path)
    try:
        length = int.from_bytes(content[:8], "little")
        if length > _MAX_HEADER:
            raise RecordError(f"a header of {length} bytes, at most {_MAX_HEADER} are read")
        stored = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
        metadata = parse_json(content[8 : 8 + length]).get("__metadata__") or {}
    except (RecordError, safetensors.SafetensorError) as error:
        raise ModelFileError(
            f"{path} is not a complete model file ({first_line(error)}); it may be truncated: copy it again"
        ) from None
    if _ENTRY not in metadata:
        raise ModelFileError(f"{path} is a safetensors file but not logpose's; use one that `logpose train` wrote")
    try:
        card, progress, tensors = _parse(path, content, length, metadata[_ENTRY], stored)
    except RecordError as error:
        raise ModelFileError(f"{path} has a damaged header ({error}); copy it again") from None
    if broken := _first_not_finite(tensors):
        raise ModelFileError(f"{path}: {broken} has values that are not finite; train the model again")
    variances = {name: values for name, values in tensors.items() if name.endswith(".variance")}
    if broken := next((name for name, values in variances.items() if (values < 0).any()), ""):
        raise ModelFileError(f"{path}: {broken} has values below 0; train the model again")
    return Checkpoint(path, card, tensors, progress, hashlib.sha256(content).hexdigest())


def is_model_file(path: Path) -> bool:
    """Whether logpose wrote the file, even if it is damaged: by the beginning of its header."""
    try:
        with errors_at(path), os.fdopen(open_regular(path), "rb") as file:
            return f'"{_ENTRY}"'.encode() in file.read(100)
    except (FileNotFoundError, NotADirectoryError, NotAFileError):
        return False


def _read(path: Path) -> bytes:
    """The bytes of a plain file. Raises `ModelFileError` and `ModelReadError`."""
    try:
        return read_regular(path)
    except NotAFileError:
        raise ModelFileError(f"expected a model file, found something else at {path}; give a plain file") from None
    except FileNotFoundError:
        raise ModelFileError(f"no model file at {path}; train one first, or check the name") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        check = "check its permissions" if isinstance(error, PermissionError) else "check the file"
        raise ModelFileError(f"cannot read the model file {path} ({error.strerror}); {check}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelReadError(
            f"expected to read the model file {path}, found {reason}: check the disk, or the network, that it is on,"
            " and run the same command again"
        ) from None


def _parse(
    path: Path, content: bytes, length: int, text: str, stored: list[tuple[str, dict[str, Any]]]
) -> tuple[ModelCard, dict[str, Any], dict[str, np.ndarray]]:
    """The card, the progress and the tensors. Raises RecordError, and `ModelFileError` for a damaged or newer file."""
    header = parse_json(text)
    if not isinstance(header, dict):
        raise RecordError("not an object")
    version, checksum = header.get("format_version"), header.get("crc32")
    if version not in (1, FORMAT_VERSION):
        raise ModelFileError(
            f"{path} has model format {version}, this logpose reads {FORMAT_VERSION}; train again or upgrade"
        )
    tensors = {name: _array(name, each) for name, each in stored}
    actual = _checksum(tensors) if version == 1 else _file_checksum(content, 8 + length)
    if checksum != actual:
        raise ModelFileError(f"{path} is damaged: it does not match its checksum; copy it again")
    missing = {"card", "progress"} - header.keys()
    if missing or not isinstance(header["progress"], dict) or not isinstance(header["card"], dict):
        raise RecordError("expected a card and a progress")
    card = parse_record(ModelCard, header["card"])
    options = {key: _option(key, value) for key, value in card.model_options.items()}
    card = replace(card, model_options=options)
    card.check()
    return card, header["progress"], tensors


def _array(name: str, stored: dict[str, Any]) -> np.ndarray:
    if stored["dtype"] != "F32":
        raise RecordError(f"{name}: expected numbers of type F32, found {stored['dtype']}")
    return np.frombuffer(stored["data"], "<f4").reshape(stored["shape"])


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
    """CRC-32 of all names and bytes, in the order of the names: the checksum of format 1."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).data, zlib.crc32(name.encode(), crc))
    return crc


def _file_checksum(content: bytes, end: int) -> str:
    """CRC-32 of a file, as if the digits of the checksum, before byte `end`, were zeros."""
    found = _CHECKSUM.search(content, 0, end)
    if not found:
        return ""
    first, last = found.span(2)
    view = memoryview(content)
    return f"{zlib.crc32(view[last:], zlib.crc32(bytes(b'0' * 8), zlib.crc32(view[:first]))):08x}"


def _first_not_finite(tensors: dict[str, np.ndarray]) -> str:
    return next((name for name, values in sorted(tensors.items()) if not np.isfinite(values).all()), "")


def _option(name: str, value: Any, depth: int = 0) -> Any:
    """An option of a model as its dataclass has it: tuples for lists. Raises RecordError for what no option can be."""
    if isinstance(value, list) and depth < _MAX_DEPTH:
        return tuple(_option(name, each, depth + 1) for each in value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and abs(value) < 2**53:
        return value
    raise RecordError(f"the option {name} is out of range")

