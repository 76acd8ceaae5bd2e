"""Regression check: a change of the code leaves the dataset, the weights and the tables bit-identical.

    python -m tests.same_bytes            # print the hashes of this machine
    pytest tests/test_same_bytes.py       # compare with same_bytes.json, on a machine like the one it was recorded on

Floating-point results depend on the processor's vector instructions and on the libraries, so the recorded hashes hold
for such machines only. A change that is meant to change results records new ones and says why.
"""

import csv
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import safetensors.numpy

from cnn.backends.cpu.processor import instruction_set
from jobs.flags import CREWS, draw_flags
from pipeline.dataset.store import Dataset

# Two epochs of each. Together they cover every kernel family, optimizer, augmentation and weight average.
TRAININGS = {
    "resnet9": ("--model", "resnet9", "--set", "model.width=8", "--batch-size", "32"),
    "best": ("--recipe", "best", "--set", "model.width=8"),
    "cifar-speedrun": ("--recipe", "cifar-speedrun", "--set", "model.width=8", "--batch-size", "50"),
    "resnet18": ("--model", "resnet18", "--set", "model.width=8", "--set", "optimizer.name=sgd"),
    "seed": ("--model", "seed", "--set", "optimizer.name=sgd", "--set", "train.clip=1"),
}


def machine() -> dict[str, str]:
    """System, processor and library versions, on which floating-point results depend."""
    libraries = {name: version(name) for name in ("numpy", "numba", "llvmlite", "pillow")}
    processor = f"{platform.machine()} {instruction_set()}"
    return {"system": platform.system(), "processor": processor, **libraries}


def measure(folder: Path) -> dict[str, str]:
    """Draw, build, train and classify in an empty `folder`; return a SHA-256 for each result."""
    for name, count, seed in (("flags/train", 12, 1), ("flags/val", 4, 2), ("new", 2, 3)):
        draw_flags(folder / name, count, seed, lambda done, total: None, workers=1)
    (folder / "new" / "torn.jpg").write_bytes((folder / "new" / CREWS[0] / f"{CREWS[0]}-0000.jpg").read_bytes()[:999])
    data = folder / "flags.zarr"
    _logpose("build", folder / "flags", data, "--size", "32", "--workers", "2")
    found = {"dataset": Dataset.open(data).content_hash}
    for name, options in TRAININGS.items():
        run = folder / name
        _logpose("train", data, run, *options, "--epochs", "2", "--device", "cpu", "--workers", "2")
        found[f"{name}: weights"] = _hash_of_weights(run / "model.safetensors")
        found[f"{name}: resume point"] = _hash_of_weights(run / "last.safetensors")
        views = ("--views", "mirror_shift") if name == "cifar-speedrun" else ()
        table = folder / f"{name}.csv"
        _logpose("classify", folder / "new", run, table, "--topk", "3", "--device", "cpu", "--workers", "2", *views)
        found[f"{name}: table"] = _hash_of_table(table)
    return found


def _logpose(*arguments: object) -> None:
    command = [sys.executable, "-m", "logpose", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).resolve().parent.parent)


def _hash_of_weights(path: Path) -> str:
    tensors = safetensors.numpy.load_file(path)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode() + tensors[name].tobytes())
    return digest.hexdigest()


def _hash_of_table(path: Path) -> str:
    """The SHA-256 of all cells; of an error only whether there is one, because its wording may change."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [[cell if name != "error" else bool(cell) for name, cell in row.items()] for row in csv.DictReader(file)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"machine": machine(), "results": measure(Path(folder))}, indent=4))
