"""Accuracy lost by JPEG compression of small images: train on the originals and on JPEG versions of them.

    python -m benchmarks.accuracy.jpeg_cost DATASET.zarr FOLDER [--quality 75] [--border N] [--recipe quick]
        [--epochs N] [--seeds N]

DATASET should be small images (`--size 32`) resized from large ones, which have hardly any JPEG artefacts. Writes it to
FOLDER twice, as PNG with DATASET's split: `clean`, and `jpeg`, compressed with that quality and 4:2:0 subsampling, as
in CIFAR-10 distributed as JPEG. Ends with the RMS change of the pixels, the accuracies of each seed and their means.

For images that already were small JPEG files, `--border 4` mirrors four pixels around them before compressing and
removes them afterwards, so that the 8x8 blocks do not coincide with the first compression's, which would change little.
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
    """Compress and decompress an image (H, W, 3) uint8: (H, W, 3) uint8."""
    file = io.BytesIO()
    wide = np.pad(image, ((border, border), (border, border), (0, 0)), "symmetric")  # (H + 2 border, W + 2 border, 3)
    Image.fromarray(wide).save(file, "jpeg", quality=quality, subsampling="4:2:0")
    read = np.asarray(Image.open(file).convert("RGB"))  # (H + 2 border, W + 2 border, 3) uint8
    return read[border : border + image.shape[0], border : border + image.shape[1]]


def rms_change(data: Dataset, quality: int, border: int) -> float:
    """The RMS change of the validation images by JPEG, in levels of 255."""
    images = data.val.read(0, data.val.rows)  # (N, H, W, 3) uint8
    squares = [
        np.mean(np.subtract(image, through_jpeg(image, quality, border), dtype=np.float64) ** 2)
        for image in images
    ]
    return float(np.sqrt(np.mean(squares)))


def write_images(data: Dataset, folder: Path, quality: int, border: int) -> None:
    """Write FOLDER/clean and FOLDER/jpeg, each with train/CLASS/ROW.png and test/CLASS/ROW.png."""
    for name, split in (("train", data.train), ("test", data.val)):
        images, labels = split.read(0, split.rows), split.labels  # (N, H, W, 3) uint8, (N,) int64
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            for kind, pixels in (("clean", image), ("jpeg", through_jpeg(image, quality, border))):
                path = folder / kind / name / data.class_names[label] / f"{row:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    last: dict[str, list[float]] = {"clean": [], "jpeg": []}  # the last epoch's accuracy, by seed
    for kind in last:
        if not (built := folder / f"{kind}.zarr").exists():
            logpose(["build", str(folder / kind), str(built), "--size", str(data.size[0])])
    for seed in range(arguments.seeds):
        for kind, found in last.items():
            run = folder / f"{kind}-{arguments.recipe}-{arguments.epochs}-{seed}"
            given = ["--recipe", arguments.recipe, "--epochs", str(arguments.epochs), "--seed", str(seed)]
            found.append(outcome(run, [str(folder / f"{kind}.zarr"), *given])[0])
    print(f"JPEG changes pixels by {rms_change(data, arguments.quality, arguments.border):.1f} of 255 (RMS)")
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
