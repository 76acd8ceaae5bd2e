"""The jobs of the sweep: where each starts, its commands, and what its results are compared by."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cnn.checkpoint import load_checkpoint

BUILD = ("build", "{images}", "{work}/data.zarr", "--size", "16", "--val", "0.25", "--workers", "1")
TRAIN = (
    *("train", "{data}", "{work}/run", "--model", "plain", "--set", "model.width=4", "--batch-size", "4"),
    *("--epochs", "2", "--device", "cpu", "--workers", "1", "--threads", "1", "--checkpoint-steps", "1"),
)
_ON_CPU = ("--device", "cpu", "--workers", "1", "--batch-size", "4")
CLASSIFY = ("classify", "{images}", "{model}", "{work}/out.csv", *_ON_CPU)
ROWS = ("classify", "{data}", "{model}", "{work}/out.csv", *_ON_CPU)
PARQUET = ("classify", "{images}", "{model}", "{work}/out.parquet", *_ON_CPU)

# Small enough that a few images make several shards, parts, and windows: module:NAME -> value.
SETTINGS: Mapping[str, Any] = {
    "pipeline.dataset.schema:CHUNK_BYTES": 2 * 16 * 16 * 3,
    "pipeline.dataset.schema:SHARD_CHUNKS": 2,
    "pipeline.faults:PAUSES": (0, 0, 0),
    "jobs.classification.inputs:FILES_PER_PART": 4,
    "jobs.classification.inputs:ROWS_PER_PART": 4,
}


@dataclass(frozen=True)
class Case:
    """A command in a certain state of its output.

    command  with {images}, {data}, {model} and {work} in place of the paths
    before   commands whose results are there at the start
    stop     how the last of these is stopped half-way: the kind of a call, and a part of its path, that fails
    again    options of the rerun; the command is the same otherwise
    """

    name: str
    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    stop: tuple[str, str] | None = None
    again: tuple[str, ...] = ()

    @property
    def job(self) -> str:
        return self.command[0]

    @property
    def rerun(self) -> tuple[str, ...]:
        return (*self.command, *self.again)


_SHARD = ("rename", "data.zarr/train/images/c/1/0/0/0")
_CHECKPOINT = ("rename", "run/metrics.csv")
_PART = ("rename", "out.csv.parts/part-000001")
_RESUME = ("--resume",)
_OTHER = ("--set", "train.seed=5")

CASES = (
    Case("build", BUILD),
    Case("build, resumed", BUILD, (BUILD,), _SHARD),
    Case("build --overwrite", (*BUILD, "--overwrite"), ((*BUILD, "--seed", "5"),)),
    Case("build, finished", BUILD, (BUILD,)),
    Case("train", TRAIN, again=_RESUME),
    Case("train --resume", (*TRAIN, "--resume"), (TRAIN,), _CHECKPOINT),
    Case("train --overwrite", (*TRAIN, "--overwrite"), ((*TRAIN, *_OTHER),)),
    Case("train, finished", TRAIN, (TRAIN,)),
    Case("classify", CLASSIFY),
    Case("classify, resumed", CLASSIFY, (CLASSIFY,), _PART),
    Case("classify --overwrite", (*CLASSIFY, "--overwrite"), ((*CLASSIFY, "--topk", "2"),)),
    Case("classify DATASET", ROWS),
    Case("classify --format parquet", PARQUET),
)  # fmt: skip

_TIMES = ("seconds", "images_per_second", "dataset", "files")


def content_of(folder: Path) -> dict[str, str]:
    """What each file below the folder holds, hashed, without what depends on the time; folders end in '/'."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[f"{name}/"] = ""
        else:
            found[name] = sha256(_timeless(path).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return found


def _timeless(path: Path) -> str:
    if path.suffix == ".safetensors":
        checkpoint = load_checkpoint(path)
        tensors = {name: sha256(tensor.tobytes()).hexdigest() for name, tensor in sorted(checkpoint.tensors.items())}
        return json.dumps([repr(checkpoint.card), tensors, _without_times(checkpoint.progress)])
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    if path.name == "metrics.csv":
        return json.dumps([_without_times(row) for row in csv.DictReader(io.StringIO(text))])
    return json.dumps(_without_times(json.loads(text))) if path.name == "summary.json" else text


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if not _is_time(key)}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


def _is_time(key: str) -> bool:
    return key in _TIMES or key.endswith("_seconds") or key == "times"
