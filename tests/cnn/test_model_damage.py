"""Damaged and hostile model files: each flipped bit is found, and every value of the header is checked."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import safetensors.numpy

from cnn import checkpoint
from cnn.backends import pick_backend
from cnn.checkpoint import FITS, ModelCard, load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError, NetworkError, NonFiniteError
from cnn.inference.predictor import Predictor
from pipeline.build.options import BuildOptions
from tests.cnn.tiny_task import MEAN, SHAPE, STD

CARD = ModelCard("plain", {"width": 2}, SHAPE, ("dot", "stripe", "frame"), "pad", MEAN, STD, temperature=1.25)
PROGRESS = {"epoch": 1, "val_loss": 0.5}
TENSORS = CARD.build_network(pick_backend("cpu")).tensors()

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model.safetensors", CARD, TENSORS, PROGRESS)
    return tmp_path / "model.safetensors"


def write(
    path: Path, edit: Edit = lambda header: None, tensors: dict[str, np.ndarray] = TENSORS, text: str = ""
) -> Path:
    """Write a model file whose header was changed by `edit`, or is `text`, with a checksum that matches."""
    header = json.loads(json.dumps({
        "format_version": 2, "crc32": "00000000", "card": vars(CARD), "progress": PROGRESS
    }))  # fmt: skip
    del header["card"]["model_class"], header["card"]["depth"]  # which is None
    edit(header)
    content = safetensors.numpy.save(tensors, {"logpose": text or json.dumps(header)})
    path.write_bytes(content.replace(b"00000000", b"%08x" % zlib.crc32(content), 1))
    return path


def test_checksum_is_that_of_the_specification(model: Path) -> None:
    """CRC-32 of the file in which the eight digits are zeros."""
    content = model.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    digits = json.loads(header["__metadata__"]["logpose"])["crc32"]
    assert content.count(digits.encode()) == 1
    assert digits == f"{zlib.crc32(content.replace(digits.encode(), b'00000000')):08x}"
    assert write(model.with_name("other")).read_bytes() == content
    assert load_checkpoint(model).digest == hashlib.sha256(content).hexdigest()


def test_each_flipped_bit_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole header, with the checksum itself, and of a sample of the tensors."""
    content = model.read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    places = [*range(8 * head), *range(8 * head, 8 * len(content), 997)]
    missed = []
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        monkeypatch.setattr(checkpoint, "_read", lambda path, found=bytes(flipped): found)
        try:
            load_checkpoint(model)
        except ModelFileError:
            continue
        missed.append(place)
    assert not missed and len(places) > 10_000


def test_older_format_is_read(model: Path) -> None:
    """Format 1 has a checksum of the tensors only."""

    def older(header: dict[str, Any]) -> None:
        header.update(format_version=1, crc32=checkpoint._checksum(TENSORS))

    found = load_checkpoint(write(model, older))
    assert (found.card, found.progress) == (CARD, PROGRESS)
    with pytest.raises(ModelFileError, match="does not match its checksum"):
        load_checkpoint(write(model, lambda header: header.update(format_version=1, crc32=1)))


def card(**values: Any) -> Edit:
    return lambda header: header["card"].update(values)


HOSTILE: dict[str, Edit] = {
    "no card": lambda header: header.pop("card"),
    "card of text": lambda header: header.update(card="text"),
    "progress of a list": lambda header: header.update(progress=[]),
    "missing field": lambda header: header["card"].pop("fit"),
    "unknown field": card(more=1),
    "model of a number": card(model=5),
    "no model": card(model=""),
    "options of a list": card(model_options=[]),
    "option of an object": card(model_options={"width": {}}),
    "option of a huge number": card(model_options={"width": 10**30}),
    "deep option": card(model_options={"width": [[[[[[[[[[1]]]]]]]]]]}),
    "shape of text": card(in_shape="12"),
    "shape of two": card(in_shape=[12, 12]),
    "shape of fractions": card(in_shape=[12.0, 12, 3]),
    "shape of nothing": card(in_shape=[0, 12, 3]),
    "shape of truth": card(in_shape=[12, True, 3]),
    "endless shape": card(in_shape=[10**9, 12, 3]),
    "large shape": card(in_shape=[10_000, 10_000, 3]),
    "many channels": card(in_shape=[12, 12, 1000], mean=[1.0] * 1000, std=[1.0] * 1000),
    "no classes": card(class_names=[]),
    "classes of text": card(class_names="abc"),
    "classes of numbers": card(class_names=[1, 2, 3]),
    "class without a name": card(class_names=["a", "b", ""]),
    "class that is no text": card(class_names=["a", "b", "\ud800"]),
    "class twice": card(class_names=["a", "b", "a"]),
    "long class": card(class_names=["a", "b", "c" * 10**6]),
    "unknown fit": card(fit="pat"),
    "mean of two": card(mean=[1.0, 2.0]),
    "infinite mean": card(mean=[1.0, 2.0, 1e999]),
    "NaN": card(std=[1.0, 2.0, float("nan")]),
    "negative std": card(std=[1.0, 2.0, -1.0]),
    "temperature 0": card(temperature=0),
    "negative temperature": card(temperature=-1.0),
    "huge temperature": card(temperature=1e30),
    "temperature of text": card(temperature="1"),
    "class path of a number": card(model_class=1),
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE)
def test_values_outside_their_range_are_refused(tmp_path: Path, edit: Edit) -> None:
    with pytest.raises(ModelFileError, match=r"model\.safetensors has a damaged header \(.*; copy it again"):
        load_checkpoint(write(tmp_path / "model.safetensors", edit))


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "{", '{"format_version": 2, "crc32": "00000000"}', "[" * 100_000, '{"a": ' * 50_000]
)
def test_headers_of_other_json_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelFileError, match=r"copy it again|model format None"):
        load_checkpoint(write(tmp_path / "model.safetensors", text=text or " "))


NETWORKS: dict[str, Edit] = {
    "wider than its tensors": card(model_options={"width": 10**9}),
    "option of text": card(model_options={"width": "2"}),
    "unknown option": card(model_options={"depth": 2}),
    "unknown model": card(model="plane"),
    "unknown loss": card(loss="none"),
    "more classes": card(class_names=list("abcd")),
    "unknown activation": card(model_options={"width": 2, "activation": "tahn"}),
}


@pytest.mark.parametrize("edit", NETWORKS.values(), ids=NETWORKS)
def test_networks_that_do_not_fit_their_tensors_are_refused(tmp_path: Path, edit: Edit) -> None:
    with pytest.raises(NetworkError):
        Predictor(write(tmp_path / "model.safetensors", edit), pick_backend("cpu"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path, value: float) -> None:
    tensors = TENSORS | {"head.bias": np.array([0, value, 0], np.float32)}
    path = tmp_path / "model.safetensors"
    with pytest.raises(ModelFileError, match=r"head\.bias has values that are not finite"):
        load_checkpoint(write(path, tensors=tensors))
    with pytest.raises(NonFiniteError, match=r"head\.bias has values that are not finite"):
        save_checkpoint(tmp_path / "other", CARD, tensors, {})
    assert not (tmp_path / "other").exists()


def test_variances_below_zero_are_refused(tmp_path: Path) -> None:
    tensors = TENSORS | {"conv1a.norm.variance": np.full(2, -1.0, np.float32)}
    with pytest.raises(ModelFileError, match=r"conv1a\.norm\.variance has values below 0"):
        load_checkpoint(write(tmp_path / "model.safetensors", tensors=tensors))


def test_outputs_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    """Finite weights may be too large."""
    tensors = {name: np.full_like(values, 1e38) for name, values in TENSORS.items()}
    predictor = Predictor(write(tmp_path / "model.safetensors", tensors=tensors), pick_backend("cpu"))
    with pytest.raises(ModelFileError, match="expected finite outputs of the model"):
        predictor.probabilities(np.zeros((2, *SHAPE), np.uint8))


def test_tensors_of_another_type_are_refused(tmp_path: Path) -> None:
    tensors = TENSORS | {"head.bias": np.zeros(3, np.float64)}
    with pytest.raises(ModelFileError, match=r"head\.bias: expected numbers of type F32, found F64"):
        load_checkpoint(write(tmp_path / "model.safetensors", tensors=tensors))


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_only_plain_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "model"
    if kind == "folder":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(ModelFileError, match=r"plain file|Is a directory"):
        load_checkpoint(path)


def test_header_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**30).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelFileError, match="a header of 1073741824 bytes, at most"):
        load_checkpoint(path)


def test_fits_are_those_of_a_build() -> None:
    assert get_args(get_type_hints(BuildOptions)["fit"]) == FITS
