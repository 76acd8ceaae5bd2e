"""Peak resident memory of a stream, measured in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import writer
from pipeline.dataset.schema import Attributes, layout

SIZE = (128, 128)
BUDGET = 16_000_000
# Two epochs with a budget; prints the memory that they took in addition to what threads need to open and decompress.
STREAM = f"""
import json, sys, threading
from pathlib import Path
from pipeline.loader import epoch_order
from pipeline.dataset.store import Dataset
from pipeline.loader.stream import BatchStream

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

epoch_order.WINDOW_BYTES = 2**21
split = Dataset.open(Path(sys.argv[1])).train
threads = [threading.Thread(target=split.read, args=(0, 16)) for _ in range(3)]  # what each thread needs to decompress
[thread.start() for thread in threads], [thread.join() for thread in threads]
before = peak()
stream = BatchStream(split, 32, seed=0, workers=3, ram_budget={BUDGET})
rows = sum(len(batch.rows) for epoch in range(2) for batch in stream.epoch(epoch))
print(json.dumps({{"rows": rows, "windows": stream.buffered_windows, "grown": peak() - before}}))
"""


def make_dataset(path: Path, rows: int, codec: str) -> None:
    """Write a dataset of noise, 128 px, without a folder of images."""
    attributes = Attributes(
        class_names=("a", "b"), size=SIZE, fit="pad", seed=0, source="", build_hash="",
        mean=(127.0,) * 3, std=(73.0,) * 3, content_hash="0", sealed=True,
    )  # fmt: skip
    counts = {"train": rows, "val": 1}
    writer.create_dataset(path, attributes, counts, codec)
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        cut = layout(count, SIZE)
        for shard, start in enumerate(range(0, count, cut.shard_rows)):
            shape = (min(cut.shard_rows, count - start), *SIZE, 3)
            writer.write_shard(path, split, shard, generator.integers(0, 256, shape, np.uint8))
    labels = {split: np.zeros(count, np.int64) for split, count in counts.items()}
    writer.seal(path, attributes, labels, {split: ["x"] * count for split, count in counts.items()})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure the peak memory")
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_memory_stays_within_the_budget_for_any_size_of_the_split(tmp_path: Path, codec: str) -> None:
    for rows in (500, 1500):  # 25 and 74 MB
        make_dataset(tmp_path / f"{rows}.zarr", rows, codec)
        command = [sys.executable, "-c", STREAM, str(tmp_path / f"{rows}.zarr")]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
        assert found["rows"] == 2 * rows
        assert found["windows"] >= 2
        assert found["grown"] <= BUDGET, f"{found['grown'] / 1e6:.1f} MB for {rows} rows"
