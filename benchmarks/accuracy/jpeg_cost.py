"""What small JPEG files cost a network: train on images as they are, and on the same through JPEG.

    python -m benchmarks.accuracy.jpeg_cost DATASET.zarr FOLDER [--quality 75] [--border N] [--recipe quick]
        [--epochs N] [--seeds N]

DATASET is built small (`--size 32`) from large images, so that its pixels hardly know of any JPEG. FOLDER gets two
copies of it, both as PNG in DATASET's split: `clean`, and `jpeg`, which went through JPEG of that quality with colours
at half the resolution, as CIFAR-10 in JPEG files did. Ends with how far that moved pixels, a line a seed and the means.

Images that were small JPEG files already show what a second loss costs, if its blocks of 8 pixels do not fall on the
first's (they would alter next to nothing): `--border 4` mirrors four pixels at each side on before, and cuts them off
after.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.accuracy.ablation import outcome
from jobs.cli import main as logpose
from pipeline.dataset.store import Dataset


def through_jpeg(image: np.ndarray, quality: int, border: int) -> np.ndarray:
    """(H, W, 3) uint8, written and read: (H, W, 3) uint8."""
    file = io.BytesIO()
    wide = np.pad(image, ((border, border), (border, border), (0, 0)), "symmetric")  # (H + 2 border, W + 2 border, 3)
    Image.fromarray(wide).save(file, "jpeg", quality=quality, subsampling="4:2:0")
    read = np.asarray(Image.open(file).convert("RGB"))  # (H + 2 border, W + 2 border, 3) uint8
    return read[border : border + image.shape[0], border : border + image.shape[1]]


def moved(data: Dataset, quality: int, border: int) -> float:
    """Root mean square of what JPEG changes in the validation images, in grey levels of 255."""
    images = data.val.read(0, data.val.rows)  # (N, H, W, 3) uint8
    squares = [
        np.mean(np.subtract(image, through_jpeg(image, quality, border), dtype=np.float64) ** 2)
        for image in images
    ]
    return float(np.sqrt(np.mean(squares)))


def write_images(data: Dataset, folder: Path, quality: int, border: int) -> None:
    """FOLDER/clean and FOLDER/jpeg, each with train/CLASS/ROW.png and test/CLASS/ROW.png."""
    for part, split in (("train", data.train), ("test", data.val)):
        images, labels = split.read(0, split.rows), split.labels  # (N, H, W, 3) uint8, (N,) int64
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            for kind, pixels in (("clean", image), ("jpeg", through_jpeg(image, quality, border))):
                path = folder / kind / part / data.class_names[label] / f"{row:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quality", type=int, default=75)
    parser.add_argument("--border", type=int, default=0)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    data, folder = Dataset.open(arguments.dataset), arguments.folder
    if not folder.exists():
        write_images(data, folder, arguments.quality, arguments.border)
    last: dict[str, list[float]] = {"clean": [], "jpeg": []}  # the last epoch's accuracy, a seed each
    for kind in last:
        if not (built := folder / f"{kind}.zarr").exists():
            logpose(["build", str(folder / kind), str(built), "--size", str(data.size[0])])
    for seed in range(arguments.seeds):
        for kind, found in last.items():
            run = folder / f"{kind}-{arguments.recipe}-{arguments.epochs}-{seed}"
            given = ["--recipe", arguments.recipe, "--epochs", str(arguments.epochs), "--seed", str(seed)]
            found.append(outcome(run, [str(folder / f"{kind}.zarr"), *given])[0])
    print(f"JPEG moves a value by {moved(data, arguments.quality, arguments.border):.1f} of 255, root mean square")
    lost = np.subtract(last["clean"], last["jpeg"])  # (seeds,)
    for seed, (clean, jpeg) in enumerate(zip(last["clean"], last["jpeg"], strict=True)):
        print(f"seed {seed}: {clean:.2%} clean, {jpeg:.2%} through JPEG")
    error = lost.std(ddof=1) / np.sqrt(len(lost)) if len(lost) > 1 else np.nan
    print(
        f"means {np.mean(last['clean']):.2%} and {np.mean(last['jpeg']):.2%}: {100 * lost.mean():.2f} points lost, "
        f"standard error over the seeds {100 * error:.2f}"
    )


if __name__ == "__main__":
    main()
