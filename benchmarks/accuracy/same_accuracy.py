"""Final accuracy of the CPU backend against the reference backend, over several seeds.

    python -m benchmarks.accuracy.same_accuracy DATASET.zarr [--seeds N] [--epochs N] [--width N] [--threads N]

Both backends train on the same images, random draws and initial weights; only the kernels differ, so that each pair
diverges by rounding alone. Prints one line per run. The last line is one JSON object: for each backend, each seed's
last validation accuracy, their mean and standard deviation.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from cnn.backends import pick_backend
from cnn.models import ResNet9
from cnn.network import Network
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from pipeline.dataset.store import Dataset
from pipeline.loader.stream import BatchStream


def last_accuracy(data: Dataset, recipe: Recipe, device: str, threads: int | None) -> tuple[float, float]:
    """Train; returns the validation accuracy after the last epoch and the first epoch's training loss."""
    shape = (*data.size, 3)
    layer = recipe.model.layers(shape, len(data.class_names))
    network = Network(layer, shape, pick_backend(device, threads), recipe.seed)
    trainer = Trainer(network, recipe, np.array(data.mean), np.array(data.std), data.train.rows)
    train = BatchStream(data.train, recipe.batch_size, seed=recipe.seed)
    val = BatchStream(data.val, recipe.batch_size, seed=recipe.seed, shuffle=False)
    first_loss = 0.0
    for epoch in range(1, recipe.epochs + 1):
        for batch in train.epoch(epoch):
            result = trainer.train_batch(batch.images, batch.labels, batch.rows)
            if epoch == 1:
                first_loss += result.loss_sum / data.train.rows
    return trainer.evaluate((batch.images, batch.labels) for batch in val.epoch(0)).accuracy, first_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    data = Dataset.open(arguments.dataset)
    found: dict[str, list[float]] = {"cpu": [], "reference": []}
    for seed in range(arguments.seeds):
        recipe = Recipe(model=ResNet9(width=arguments.width), epochs=arguments.epochs, seed=seed)
        for device, accuracies in found.items():
            began = time.perf_counter()
            accuracy, first_loss = last_accuracy(data, recipe, device, arguments.threads)
            accuracies.append(accuracy)
            print(
                f"seed {seed}  {device:9}  first epoch's loss {first_loss:.5f}  accuracy {accuracy:.2%}  "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )
    print(
        json.dumps(
            {
                device: {"accuracies": values, "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
                for device, values in found.items()
            }
        )
    )


if __name__ == "__main__":
    main()
