"""Our side of `benchmarks.training.train_step`: a worker that times training and inference on one batch of noise.

    python -m benchmarks.training.side_ours NETWORK THREADS DEVICE [sgd]
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.training.networks import CASES, LOSS, OPTIMIZER
from benchmarks.worker import median_ms, peak_mb, serve
from cnn.backends import pick_backend
from cnn.inference.folded import FoldedNetwork
from cnn.network import Network
from cnn.training.optimizers import SGD, Optimizer
from cnn.training.rehearsal import prepare_training
from cnn.training.schedules import Constant
from cnn.training.trainer import Recipe, Trainer


class Unchanged:
    """An `Augment` that does nothing."""

    flip = False

    def maps(self, key: int, rows: np.ndarray, height: int, width: int) -> None:
        return None

    def colours(self, key: int, rows: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
        return None


class OurSide:
    """A case's network, trainer and batch."""

    def __init__(self, name: str, threads: int, device: str, optimizer: Optimizer) -> None:
        case = CASES[name]
        self.network = Network(case.layer, case.in_shape, pick_backend(device, threads))
        recipe: Any = Recipe(
            model=case.model, optimizer=optimizer, loss=LOSS, schedule=Constant(), batch_size=case.batch,
            augment=Unchanged(),
        )  # fmt: skip
        self.trainer = Trainer(self.network, recipe, np.zeros(3), np.ones(3), case.batch)
        x, self.labels = case.batch_of_noise()
        self.x, self.rows = self.network.backend.asarray(x), np.arange(case.batch)

    def step(self) -> float:
        """One training step on the normalised images; returns the loss."""
        result = self.trainer.train_batch(self.x, self.labels, self.rows)
        return result.loss_sum / result.rows

    def train(self, seconds: float, min_runs: int = 2) -> float:
        return median_ms(self.step, seconds, min_runs)

    def infer(self, seconds: float, min_runs: int = 2) -> dict[str, float]:
        infer = FoldedNetwork(self.network)
        return {"ours": median_ms(lambda: infer(self.x), seconds, min_runs)}

    def logits(self) -> list[list[float]]:
        """The outputs (N, classes) of inference, to compare with those of others."""
        return self.network.backend.to_host(FoldedNetwork(self.network)(self.x)).tolist()


@contextmanager
def without_preprocessing() -> Iterator[None]:
    """Have the trainer take normalised images, as `preprocess` would return them, instead of uint8 ones."""
    preprocess = patch("cnn.inputs.training_inputs.preprocess", lambda backend, x, maps, mean, std, colours: x)
    with preprocess, patch("cnn.training.trainer.check_images", create=True):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=CASES)
    parser.add_argument("threads", type=int)
    parser.add_argument("device", choices=("cpu", "reference"))
    parser.add_argument("optimizer", nargs="?", choices=("sgd",), help="plain SGD instead of AdamW")
    arguments = parser.parse_args()
    plain_sgd = SGD(OPTIMIZER.lr, momentum=0.0, nesterov=False, weight_decay=0.0)
    optimizer = plain_sgd if arguments.optimizer else OPTIMIZER
    side = OurSide(arguments.network, arguments.threads, arguments.device, optimizer)
    prepare_training(side.trainer, side.rows.size)
    with without_preprocessing():
        serve({"loss": side.step, "train": side.train, "infer": side.infer, "logits": side.logits, "peak": peak_mb})
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main()
