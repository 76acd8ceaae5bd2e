"""Fuzzing of the model loader: damaged and hostile files give a result or a typed error, and nothing else.

    python -m tests.jobs.damage.fuzz_models [--minutes 5] [--first 0]

Each file goes to one of the jobs that read model files: `classify`, `logpose.load`, `train --init`, `train --resume`,
`info`. A process runs one job after another, with at most 2 GB of memory and a minute per file: see `tests/fuzzing.py`.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import logpose
from cnn import checkpoint
from logpose.common.errors import LogposeError
from tests.fuzzing import Try, fuzz
from tests.jobs.conftest import RECIPE, draw_classes
from tests.jobs.damage.judging import is_accepted

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**53, 2**63, -(2**63), 10**30, 10**400, 0.0, -0.5, 1e-320, 1e308,
    float("nan"), float("inf"), "", "a", "\x1b[2J\n", "\ud800", "\udcff", "ß☃\u202e", "x" * 5000, [], {}, [[]], [1, 2],
    ["a"], {"a": 1}, [0] * 5000, "plain", "resnet9", "seed", "sgd", "[train]\nepochs = 1e9\n", "../../etc/passwd",
    "/dev/zero", "os:system",
)  # fmt: skip
KINDS = ("F32", "F64", "I64", "BOOL", "F8_E4M3", "BF16", "X", 5)
JOBS = ("classify", "load", "init", "resume", "info")


class Sample(NamedTuple):
    """A model file in parts: the header of safetensors without its metadata, logpose's header, and the tensors."""

    tensors: dict[str, Any]
    header: dict[str, Any]
    payload: bytes

    @classmethod
    def read(cls, path: Path) -> Sample:
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        tensors = json.loads(content[8:end])
        return cls(tensors, json.loads(tensors.pop("__metadata__")["logpose"]), content[end:])

    def write(self, *, checksum: bool) -> bytes:
        """The file, perhaps with a checksum that matches."""
        metadata = {"logpose": json.dumps(self.header)}
        text = json.dumps({"__metadata__": metadata, **self.tensors}).encode()
        if not checksum:
            return len(text).to_bytes(8, "little") + text + self.payload
        text = checkpoint._CHECKSUM.sub(rb"\g<1>00000000", text, count=1)
        content = len(text).to_bytes(8, "little") + text + self.payload
        return checkpoint._CHECKSUM.sub(rb"\g<1>%08x" % zlib.crc32(content), content, count=1)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each container of the JSON with each of its keys."""
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from places(node[key])


def change(draw: random.Random, node: dict[str, Any]) -> None:
    """Change a value somewhere in the JSON, or the keys of an object."""
    inner, key = draw.choice(list(places(node)))
    kind, value = draw.randrange(8), json.loads(json.dumps(draw.choice(VALUES)))
    if kind < 3:
        inner[key] = value
    elif kind == 3:
        del inner[key]
    elif kind == 4:
        other, name = draw.choice(list(places(node)))
        inner[key] = json.loads(json.dumps(other[name]))
    elif kind == 5 and isinstance(inner[key], int | float):
        inner[key] = inner[key] * draw.choice((-1, 0.5, 2, 1000, 1 + 1e-9)) + draw.choice((0, 1, -1))
    elif kind == 6 and isinstance(inner, dict):
        inner[draw.choice(("more", "model_class", "crc32", "depth", "\ud800", "x" * 3000))] = value
    else:
        for _ in range(draw.choice((1, 3, 150))):
            inner[key] = [inner[key]] if draw.random() < 0.5 else {"a": inner[key]}


def change_tensors(draw: random.Random, tensors: dict[str, Any]) -> None:
    name = draw.choice(list(tensors))
    entry, kind = tensors[name], draw.randrange(6)
    if kind == 0:
        entry["dtype"] = draw.choice(KINDS)
    elif kind == 1:
        entry["shape"] = draw.choice(([], [0], [2**62, 2**62], [-1], entry["shape"][::-1], [1, *entry["shape"]], "a"))
    elif kind == 2:
        entry["data_offsets"] = draw.choice(([0, 0], [0, 2**63], [8, 4], [-4, 0], [0, 4], [1.5, 2], []))
    elif kind == 3:
        del tensors[name]
    elif kind == 4:
        tensors[draw.choice(("head.more", "", "\n", "x" * 3000, "a/../b", "ema.head.bias"))] = tensors.pop(name)
    else:
        change(draw, tensors)


def damage(draw: random.Random, data: bytearray, others: list[bytes]) -> None:
    """Change bytes: any of them, or the header's."""
    place = int(len(data) * draw.random() ** draw.choice((1, 3)))
    kind = draw.randrange(5)
    if kind == 0:
        data[place : place + 1] = bytes((draw.randrange(256),))
    elif kind == 1:
        del data[place : place + draw.choice((1, 4, 50, 10**6))]
    elif kind == 2:
        data[place:place] = draw.choice((b"\0", b"[" * 5000, b'{"a":' * 50, b"\xff" * 40, bytes(10**5)))
    elif kind == 3:
        other = draw.choice(others)
        start = draw.randrange(len(other))
        data[place : place + 40] = other[start : start + draw.choice((4, 40, 4000))]
    else:
        data[:8] = draw.choice((0, 1, 7, 2**24, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")


def mutated(number: int, samples: list[Sample]) -> bytes:
    """The file of this number."""
    draw = random.Random(number)
    found = draw.choice(samples)
    sample = Sample(*json.loads(json.dumps(found[:2])), found.payload)
    kind = draw.randrange(8)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        if kind < 5:
            change(draw, sample.header["card" if kind < 2 else "progress"] if kind < 4 else sample.header)
        elif kind == 5:
            change_tensors(draw, sample.tensors)
        elif kind == 6:
            payload = np.frombuffer(sample.payload, "<f4").copy()  # (n,)
            payload[draw.randrange(len(payload))] = draw.choice((np.nan, np.inf, 1e38, -1e38, -1.0, 1e-45))
            sample = sample._replace(payload=payload.tobytes())
        else:
            break
    data = bytearray(sample.write(checksum=draw.random() < 0.95))
    if kind == 7:
        for _ in range(draw.choice((1, 1, 3))):
            damage(draw, data, [each.write(checksum=False) for each in samples])
    return bytes(data)


def run_one(number: int, folder: Path, samples: list[Sample]) -> bool:
    """Give the file of this number to its job; whether that accepted it. Raises what is neither a result nor an error.

    `folder` holds what `prepare` has made.
    """
    job, work = JOBS[number % len(JOBS)], folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder / "run", work)
    model = work / ("last.safetensors" if job == "resume" or number % 3 == 0 else "model.safetensors")
    model.write_bytes(mutated(number, samples))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if job == "load":
            return _accepted_by_python(model, folder)
        data = folder / "data.zarr"
        arguments = {
            "classify": ("classify", folder / "images", model, work / "out.csv"),
            "init": ("train", data, work / "new", "--init", model, *RECIPE[4:], "--epochs", "1"),
            "resume": ("train", data, work, "--resume", "--epochs", "2", *RECIPE[-4:]),
            "info": ("info", work),
        }[job]
        return is_accepted(*arguments)


def _accepted_by_python(model: Path, folder: Path) -> bool:
    try:
        found = logpose.load(model, device="cpu").predict(sorted((folder / "images").rglob("*.png")))
    except LogposeError as error:
        assert error.args and "\n" not in str(error), error
        return False
    assert all(0 <= each.probability <= 1 for each in found), found
    return True


def prepare(folder: Path) -> Try:
    """Make images, a dataset and a finished training; run each job once."""
    draw_classes(folder / "images", 3)
    assert is_accepted("build", folder / "images", folder / "data.zarr", "--size", 8, "--val", 0.3)
    assert is_accepted("train", folder / "data.zarr", folder / "run", *RECIPE, "--epochs", 1)
    files = [folder / "run" / f"{name}.safetensors" for name in ("model", "last")]
    samples = [Sample.read(file) for file in (*files, files[1])]
    attempt = partial(run_one, folder=folder, samples=samples)
    for number in range(2 * len(JOBS)):
        attempt(number)
    return attempt


if __name__ == "__main__":
    sys.exit(fuzz(__spec__.name, __doc__, prepare))
