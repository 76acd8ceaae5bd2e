"""One number for everything that a training computed, without the times."""

import hashlib
import json
from pathlib import Path

from cnn.checkpoint import load_checkpoint
from jobs.training.timing import EpochTimes

TIMES = {*EpochTimes.__dataclass_fields__, "images_per_second"}


def digest(run_dir: Path) -> str:
    """SHA-256 of the last weights, state and optimizer, of the best network, and of all metrics."""
    found = hashlib.sha256()
    last, best = (load_checkpoint(run_dir / f"{name}.safetensors") for name in ("last", "model"))
    for tensors in (last.tensors, best.tensors):
        for name in sorted(tensors):
            found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
            found.update(tensors[name].tobytes())
    history = [{key: row[key] for key in sorted(row.keys() - TIMES)} for row in last.progress["history"]]
    found.update(json.dumps([history, last.progress["step"], last.progress["best"]]).encode())
    return found.hexdigest()
