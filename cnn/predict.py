"""A trained network, ready to say what is on a picture."""

from pathlib import Path

import numpy as np

from cnn.backend import Backend
from cnn.checkpoint import load_checkpoint
from cnn.inference import Inference
from cnn.train import normalisation, prepare


class Predictor:
    """The model file at `path`, on `backend`. Raises `ModelFileError` where the file is not usable."""

    def __init__(self, path: Path, backend: Backend) -> None:
        checkpoint = load_checkpoint(path)
        self.card, self.backend = checkpoint.card, backend
        network = self.card.build_network(backend)
        checkpoint.load_into(network)
        self.network, self.infer = network, Inference(network)
        self.loss = self.card.build_loss()
        self.mean, self.std = normalisation(self.network, np.array(self.card.mean), np.array(self.card.std))  # (3,)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Each class's probability, float32 (B, classes), for uint8 pictures (B, H, W, 3), on the host."""
        x = prepare(self.network, images, None, self.mean, self.std)  # (B, H, W, 3)
        outputs = self.infer(x)  # (B, classes)
        return self.backend.to_host(self.loss.probabilities(self.backend, outputs))
