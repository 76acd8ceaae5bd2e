"""Peak memory of a build, by number of images and of workers.

    python -m benchmarks.build.build_memory [--counts 1000 10000 40000] [--workers 1 2 4] [--size 128]

Builds each number of distinct noise images with two workers, and the smallest number with each number of workers, each
in its own process. Measures the peak resident memory, less that after the imports. One run each: memory hardly varies.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

BUILD = """
import json, resource, sys
from pathlib import Path
from pipeline.build.build import build_dataset
from pipeline.build.options import BuildOptions
from pipeline.dataset.store import Dataset

root, dest, size, workers = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build_dataset(Path(root), Path(dest), BuildOptions((int(size),) * 2, workers=int(workers)))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = Dataset.open(Path(dest)).train.layout.shard_rows
print(json.dumps({"imported": before / 1024, "peak": after / 1024, "shard": rows * int(size) ** 2 * 3 / 2**20}))
"""


def draw(root: Path, count: int) -> None:
    """Write `count` PNG images of 16x16 pixels of noise, in two classes."""
    generator = np.random.default_rng(count)
    for number in range(count):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)  # (H, W, 3)
        Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)


def measure(root: Path, dest: Path, size: int, workers: int) -> dict[str, float]:
    command = [sys.executable, "-c", BUILD, str(root), str(dest), str(size), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 40_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    smallest = min(options.counts)
    print("images  workers  shard MB  imported MB  build MB  build MB / (workers x shard)")
    cases = [(count, 2) for count in options.counts] + [(smallest, workers) for workers in options.workers]
    for count, workers in cases:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder) / "images", count)
            found = measure(Path(folder) / "images", Path(folder) / "d.zarr", options.size, workers)
        needed = found["peak"] - found["imported"]
        print(
            f"{count:8,}  {workers:7}  {found['shard']:8.1f}  {found['imported']:11.0f}  {needed:8.0f}"
            f"  {needed / (workers * found['shard']):.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
