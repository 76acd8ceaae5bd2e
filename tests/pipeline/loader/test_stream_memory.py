"""The most memory that a stream ever holds, as the system counts it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import store
from pipeline.dataset.schema import Attributes, layout

SIZE = (128, 128)
BUDGET = 16_000_000
# Two epochs over a part with the budget given, and what that took beyond opening the dataset.
STREAM = f"""
import json, sys
from pathlib import Path
from pipeline.loader import epoch_order as plan
from pipeline.dataset.store import Dataset
from pipeline.loader.stream import BatchStream

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

plan.WINDOW_BYTES = 2**21
part = Dataset.open(Path(sys.argv[1])).train
part.read(0, 1)
before = peak()
stream = BatchStream(part, 32, seed=0, workers=3, ram_budget={BUDGET})
rows = sum(len(batch.rows) for epoch in range(2) for batch in stream.epoch(epoch))
print(json.dumps({{"rows": rows, "depth": stream.depth, "grown": peak() - before}}))
"""


def make_dataset(path: Path, rows: int, codec: str) -> None:
    """Noise of 128 px, without the images that a build would need."""
    attributes = Attributes(
        class_names=("a", "b"), size=SIZE, fit="pad", seed=0, source="", build_hash="",
        mean=(127.0,) * 3, std=(73.0,) * 3, content_hash="0", sealed=True,
    )  # fmt: skip
    counts = {"train": rows, "val": 1}
    store.create(path, attributes, counts, codec)
    generator = np.random.default_rng(0)
    for part, count in counts.items():
        cut = layout(count, SIZE)
        for shard, start in enumerate(range(0, count, cut.shard_rows)):
            shape = (min(cut.shard_rows, count - start), *SIZE, 3)
            store.write_shard(path, part, shard, generator.integers(0, 256, shape, np.uint8))
    labels = {part: np.zeros(count, np.int64) for part, count in counts.items()}
    store.seal(path, attributes, labels, {part: ["x"] * count for part, count in counts.items()})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say how much memory it took")
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_memory_stays_within_the_budget_however_large_the_part(tmp_path: Path, codec: str) -> None:
    for rows in (500, 1500):  # 25 and 74 MB
        make_dataset(tmp_path / f"{rows}.zarr", rows, codec)
        command = [sys.executable, "-c", STREAM, str(tmp_path / f"{rows}.zarr")]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
        assert found["rows"] == 2 * rows
        assert found["depth"] >= 2
        assert found["grown"] <= BUDGET, f"{found['grown'] / 1e6:.1f} MB for {rows} rows"
