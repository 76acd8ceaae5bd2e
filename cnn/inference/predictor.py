"""A trained network, ready to say what is on an image."""

from copy import copy
from pathlib import Path
from threading import Lock

import numpy as np

from cnn.backends import pick_backend
from cnn.backends.base import Array, Backend
from cnn.checkpoint import load_checkpoint
from cnn.inference.folded import FoldedNetwork
from cnn.training.trainer import normalisation, tta_outputs


class Predictor:
    """The model file at `path`, on `backend`. Raises `ModelFileError` where the file is not usable.

    `views` is a key of cnn.inputs.augment.VIEWS: outputs are the mean over several looks at each image.

    On the CPU what it says of an image is the same to the bit, whatever the batch and the number of threads, and its
    logits are those that `Trainer.evaluate` sees. It may be called from several threads, which then wait for each
    other: `for_thread` gives each its own.
    """

    def __init__(self, path: Path, backend: Backend, views: str = "none") -> None:
        checkpoint = load_checkpoint(path)
        self.card, self.backend, self.views = checkpoint.card, backend, views
        network = self.card.build_network(backend, seed=None)
        checkpoint.load_into(network)
        self.infer = FoldedNetwork(network)
        self.loss = self.card.build_loss()
        self.mean, self.std = normalisation(network, np.array(self.card.mean), np.array(self.card.std))  # (3,)
        self._one_at_a_time = Lock()  # a backend's scratch memory serves one call at a time

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The network's outputs, float32 (B, classes), for uint8 images (B, H, W, 3), on the host."""
        with self._one_at_a_time:
            return self.backend.to_host(self._outputs(images))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Each class's probability, float32 (B, classes), for uint8 images (B, H, W, 3), on the host."""
        with self._one_at_a_time:
            outputs = self._outputs(images) / self.card.temperature  # (B, classes)
            return self.backend.to_host(self.loss.probabilities(self.backend, outputs))

    def for_thread(self) -> "Predictor":
        """The same predictor for one more thread, to work at the same time as this one, in that thread alone.

        On the CPU it has scratch memory of its own and shares all parameters. Other devices do one thing at a time
        anyway: there it is this predictor itself.
        """
        if self.backend.name != "cpu":
            return self
        other = copy(self)
        other.backend, other._one_at_a_time = pick_backend("cpu", threads=1), Lock()
        other.infer = self.infer.on(other.backend)
        return other

    def _outputs(self, images: np.ndarray) -> Array:
        return tta_outputs(self.backend, self.infer, images, self.views, self.mean, self.std)  # (B, classes)
