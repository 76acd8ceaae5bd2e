"""Load a model file and classify batches of images."""

from copy import copy
from pathlib import Path
from threading import Lock

import numpy as np

from cnn.backends.base import Array, Backend
from cnn.checkpoint import load_checkpoint
from cnn.errors import UnknownNameError
from cnn.inference.folded import FoldedNetwork
from cnn.inference.tta import VIEWS, tta_outputs
from cnn.inputs.checks import check_images
from cnn.inputs.preprocess import normalisation


class Predictor:
    """The network of the model file at `path`, on `backend`.

    `views` is a key of cnn.inference.tta.VIEWS: test-time augmentation. On the CPU an image's outputs are bitwise
    independent of the batch and of the number of threads, and the same as in `Trainer.evaluate`. Calls from several
    threads are serialised: use `for_thread` for one predictor per thread.

    Raises `ModelFileError` where the file is missing, damaged, or of a model that is not registered, and
    `UnknownNameError` for unknown views.
    """

    def __init__(self, path: Path, backend: Backend, views: str = "none") -> None:
        if views not in VIEWS:
            raise UnknownNameError("views", views, VIEWS)
        checkpoint = load_checkpoint(path)
        self.card, self.backend, self.views = checkpoint.card, backend, views
        network = self.card.build_network(backend, seed=None)
        checkpoint.load_into(network)
        self.infer = FoldedNetwork(network)
        self.loss = self.card.build_loss()
        self.mean, self.std = normalisation(network, np.array(self.card.mean), np.array(self.card.std))  # (3,)
        self._lock = Lock()  # calls share the backend's scratch memory

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Outputs before the softmax, float32 (B, classes) on the host, for uint8 images (B, H, W, 3).

        Raises `InputError` for other arrays.
        """
        with self._lock:
            return self.backend.to_host(self._outputs(images))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Calibrated class probabilities, float32 (B, classes) on the host, for uint8 images (B, H, W, 3).

        Raises `InputError` for other arrays.
        """
        with self._lock:
            outputs = self._outputs(images) / self.card.temperature  # (B, classes)
            return self.backend.to_host(self.loss.probabilities(self.backend, outputs))

    def for_thread(self) -> "Predictor":
        """Return a predictor for another thread, with the same parameters; this one where that would be no faster."""
        backend = self.backend.for_thread()
        if backend is self.backend:
            return self
        other = copy(self)
        other.backend, other.infer, other._lock = backend, self.infer.on(backend), Lock()
        return other

    def _outputs(self, images: np.ndarray) -> Array:
        check_images(images, self.card.in_shape)
        return tta_outputs(self.backend, self.infer, images, self.views, self.mean, self.std)  # (B, classes)
