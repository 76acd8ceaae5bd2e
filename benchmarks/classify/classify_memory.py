"""Peak memory of a classification, by number of files.

    python -m benchmarks.classify.classify_memory IMAGES [--counts 1000 50000] [--distinct 1000] [--size 128]

Fills a flat folder with links to up to --distinct of the images, and classifies each number of files with the untrained
default network, in its own process. Reports the peak resident memory, and that after the imports. Fails if the largest
number takes over 5 % more than the smallest. One run each: memory hardly varies.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cnn.backends import pick_backend
from cnn.checkpoint import ModelCard, save_checkpoint
from cnn.training.trainer import Recipe
from jobs.recipes.config import model_of

MAX_GROWTH = 0.05

# VmHWM is this process's peak; getrusage's would include the parent's memory at the fork.
CLASSIFY = """
import json, sys
from pathlib import Path
import jobs.classification.classify
from jobs.cli import main

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

imported = peak()
code = main(["classify", *sys.argv[1:]])
print(json.dumps({"imported": imported, "peak": peak()}))
sys.exit(code)
"""


def save_default_model(path: Path, size: int) -> None:
    """Save the untrained network of the default recipe, for seven classes."""
    name, options = model_of(Recipe())
    card = ModelCard(name, options, (size, size, 3), tuple("abcdefg"), "pad", (128.0,) * 3, (64.0,) * 3)
    save_checkpoint(path, card, card.build_network(pick_backend("cpu")).tensors(), {})


def fill(folder: Path, images: list[Path], count: int) -> Path:
    """Fill `folder` with `count` links to the images, repeating them; returns it."""
    folder.mkdir()
    for number in range(count):
        source = images[number % len(images)]
        link = folder / f"{number:06}{source.suffix}"
        try:
            os.link(source, link)
        except OSError:  # another file system, or too many links
            shutil.copy(source, link)
    return folder


def measure(images: Path, model: Path, out: Path) -> dict[str, float]:
    """Classify in a new process; returns its memory in MB, `imported` and `peak`."""
    command = [sys.executable, "-c", CLASSIFY, str(images), str(model), str(out), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 50_000])
    parser.add_argument("--distinct", type=int, default=1000)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    images = sorted(path for path in options.images.rglob("*") if path.is_file())[: options.distinct]
    peaks = {}
    print("   files  imported MB  peak MB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        save_default_model(model, options.size)
        measure(fill(folder / "first", images, 1), model, folder / "first.csv")  # compiles the kernels
        for count in options.counts:
            found = measure(fill(folder / str(count), images, count), model, folder / f"{count}.csv")
            peaks[count] = found["peak"]
            print(f"{count:8,}  {found['imported']:11.0f}  {found['peak']:7.0f}", flush=True)
            shutil.rmtree(folder / str(count))
    growth = peaks[max(peaks)] / peaks[min(peaks)] - 1
    print(f"{100 * growth:+.1f} % from the smallest to the largest number; the limit is {100 * MAX_GROWTH:+.0f} %")
    if growth > MAX_GROWTH:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
