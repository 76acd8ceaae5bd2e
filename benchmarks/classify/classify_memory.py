"""The most memory that a classification ever holds, by number of files.

    python -m benchmarks.classify.classify_memory IMAGES [--counts 1000 50000] [--distinct 1000] [--size 128]

Fills one flat folder with links to a thousand of the images, and classifies each count of them in a process of its
own, with the default network as it is before training. Peak resident memory as the system counts it, also that of a
process that has only imported the same. The greatest count should take at most 5 % more than the least. One run each:
memory, unlike time, hardly varies.
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
from cnn.training.recipe import Recipe
from jobs.recipes.config import model_of

BAR = 0.05

# The process's own high-water mark. That of getrusage begins with what its parent held.
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
    """The network that `logpose train` begins with, for seven classes."""
    name, options = model_of(Recipe())
    card = ModelCard(name, options, (size, size, 3), tuple("abcdefg"), "pad", (128.0,) * 3, (64.0,) * 3)
    save_checkpoint(path, card, card.build_network(pick_backend("cpu")).tensors(), {})


def fill(folder: Path, images: list[Path], count: int) -> Path:
    """Link to the images, one after the other, until there are so many links."""
    folder.mkdir()
    for number in range(count):
        source = images[number % len(images)]
        link = folder / f"{number:06}{source.suffix}"
        try:
            os.link(source, link)
        except OSError:  # another file system, or enough links
            shutil.copy(source, link)
    return folder


def measure(images: Path, model: Path, out: Path) -> dict[str, float]:
    """MB after importing, and at most."""
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
        measure(fill(folder / "first", images, 1), model, folder / "first.csv")  # so that kernels are compiled
        for count in options.counts:
            found = measure(fill(folder / str(count), images, count), model, folder / f"{count}.csv")
            peaks[count] = found["peak"]
            print(f"{count:8,}  {found['imported']:11.0f}  {found['peak']:7.0f}", flush=True)
            shutil.rmtree(folder / str(count))
    more = peaks[max(peaks)] / peaks[min(peaks)] - 1
    print(f"{100 * more:+.1f} % from the least count to the greatest; the bar is {100 * BAR:+.0f} %")
    if more > BAR:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
