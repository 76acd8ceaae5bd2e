"""Count what a step of training or inference asks of the device: launches, waits, memory and copies.

    python -m tests.cnn.backends.gpu.measures.steps    # a table, with the emulator
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from cnn.backends.gpu.backend import GpuBackend
from cnn.inference.folded import FoldedNetwork
from cnn.inference.tta import tta_outputs
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Mix
from cnn.models import Airbench94, Model, ResNet9, ResNet18, Seed
from cnn.network import Network
from cnn.training.averaging import EMA
from cnn.training.optimizers import SGD
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer

CLASSES = 10
EVERYTHING = Augment(True, 0.2, 0.5, 1.5, 0.3, brightness=0.2, contrast=0.2, saturation=0.2)
# Small networks with as many layers as large ones, and images that all their pools fit.
MODELS: dict[str, tuple[Model, int]] = {
    "resnet9": (ResNet9(width=8), 8), "airbench94": (Airbench94(width=8), 16), "resnet18": (ResNet18(width=8), 8),
    "seed": (Seed(), 8),
}  # fmt: skip


class Counts(NamedTuple):
    """Of one step: by kernel or function, its launches; by what the host waited for, how often; bytes.

    early: waits before the whole step was launched.
    """

    launches: Counter[str]
    waits: Counter[str]
    grown: Counter[str]
    copied: Counter[str]
    early: int


def reset(cupy: Any) -> None:
    cupy.cuda.finish_all()
    for counter in (cupy.cuda.launches, cupy.cuda.waits, cupy.cuda.grown, cupy.cuda.copied):
        counter.clear()


def counts(cupy: Any, early: int) -> Counts:
    cuda = cupy.cuda
    return Counts(*(Counter(each) for each in (cuda.launches, cuda.waits, cuda.grown, cuda.copied)), early)


def trainer_of(model: Model, side: int, recipe: Recipe, precision: str = "bf16") -> Trainer:
    shape = (side, side, 3)
    network = Network(model.layers(shape, CLASSES), shape, GpuBackend(precision), seed=0)
    trainer = Trainer(network, recipe, np.full(3, 120.0), np.full(3, 60.0), 1000)
    if network.needs_data:
        trainer.initialise_from_images(np.random.default_rng(0).integers(0, 256, (32, *shape), np.uint8))
    return trainer


def recipe_of(model: Model, batch: int, mix: str = "cutmix", micro_batch: int = 0) -> Recipe:
    """The most that a step can have: clipping, an average, augmentation and mixing."""
    return Recipe(
        model, SGD(lr=0.01, weight_decay=5e-4), augment=EVERYTHING, mix=Mix(mix), ema=EMA(horizon=0.1), clip=1.0,
        batch_size=batch, micro_batch=micro_batch, epochs=2,
    )  # fmt: skip


def batch_of(side: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (B, H, W, 3), labels (B,) and row numbers (B,)."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (rows, side, side, 3), np.uint8)
    return images, generator.integers(0, CLASSES, rows), generator.permutation(1000)[:rows]


def training_step(cupy: Any, name: str, rows: int = 4, mix: str = "cutmix", micro_batch: int = 0) -> Counts:
    """A steady step, with the one before it under way, as in the training loop."""
    model, side = MODELS[name]
    trainer = trainer_of(model, side, recipe_of(model, rows, mix, micro_batch))
    pending = trainer.start_batch(*batch_of(side, rows, 0))
    for step in (1, 2, 3):
        reset(cupy)
        following = trainer.start_batch(*batch_of(side, rows, step))
        early = cupy.cuda.waits.total()
        pending.result()
        pending = following
    found = counts(cupy, early)
    pending.result()
    return found


def inference_step(cupy: Any, name: str, rows: int = 4) -> Counts:
    """Classification of a batch, with its results read later."""
    model, side = MODELS[name]
    trainer = trainer_of(model, side, recipe_of(model, rows))
    infer, backend = FoldedNetwork(trainer.network), trainer.backend
    for step in range(5):
        images = batch_of(side, rows, step)[0]
        reset(cupy)
        read = backend.read_later(tta_outputs(backend, infer, images, "none", trainer.mean, trainer.std))
        early = cupy.cuda.waits.total()
        read()
    return counts(cupy, early)


def main() -> None:
    from tests.cuda_cpu import emulated_cuda

    with emulated_cuda() as cupy:
        print("| Network | Step | Kernels | Graphs | Waits | Bytes to the GPU | Bytes back |")
        print("|---|---|---|---|---|---|---|")
        for name in MODELS:
            for what, step in (("training", training_step), ("inference", inference_step)):
                launches, waits, _, copied, _ = step(cupy, name)
                graphs = launches.pop("graph", 0)
                numbers = (launches.total(), graphs, waits.total(), copied["bytes"], copied["to_host"])
                print(f"| {name} | {what} | {' | '.join(map(str, numbers))} |")


if __name__ == "__main__":
    main()
