"""Load a model file and classify batches of images."""

from collections.abc import Callable
from copy import copy
from pathlib import Path
from threading import Lock

import numpy as np

from cnn.backends.base import Array, Backend, KernelProgress
from cnn.checkpoint import Checkpoint, load_checkpoint
from cnn.errors import DeviceMemoryError, ModelFileError, UnknownNameError, is_cuda_error, release_frames
from cnn.inference.folded import FoldedNetwork
from cnn.inference.tta import VIEWS, tta_outputs
from cnn.inputs.checks import check_images
from cnn.inputs.preprocess import normalisation
from cnn.network import Network, foreign_layer


class Predictor:
    """The network of the model file at `path`, or of one that is loaded, on `backend`.

    `views` is a key of cnn.inference.tta.VIEWS: test-time augmentation. On the CPU an image's outputs are bitwise
    independent of the batch and of the number of threads, and the same as in `Trainer.evaluate`. Calls from several
    threads take turns, but a GPU's results are waited for in parallel: use `for_thread` for one predictor per thread.

    Where a GPU's memory is too small for a batch, it is computed in parts. `max_rows` is the largest part that fits, as
    far as is known; None: any.

    `digest` is the SHA-256 of the file's bytes, in hex. `progress` is told of kernels that are compiled first.

    Raises `ModelFileError` where the file is missing, damaged, or of a model that is not registered, and
    `UnknownNameError` for unknown views.
    """

    def __init__(
        self, path: Path | Checkpoint, backend: Backend, views: str = "none", progress: KernelProgress | None = None
    ) -> None:
        if views not in VIEWS:
            raise UnknownNameError("views", views, VIEWS)
        checkpoint = path if isinstance(path, Checkpoint) else load_checkpoint(path)
        self.card, self.backend, self.views = checkpoint.card, backend, views
        self.path, self.digest = checkpoint.path, checkpoint.digest
        network = checkpoint.build_network(backend)
        self.loss = self.card.build_loss()
        self.mean, self.std = normalisation(network, np.array(self.card.mean), np.array(self.card.std))  # (3,)
        self.max_rows: int | None = None
        self._lock = Lock()  # calls share the backend's scratch memory
        if foreign_layer(network.layer) is None:  # a user's own may do anything
            backend.prepare(lambda: self._rehearse(network), progress)
        with np.errstate(all="ignore"):  # outputs are checked
            self.infer = FoldedNetwork(network)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Outputs before the softmax, float32 (B, classes) on the host, for uint8 images (B, H, W, 3).

        Raises `InputError` for other arrays, and `DeviceMemoryError` where not even one image fits.
        """
        return self._compute(images, lambda outputs: outputs)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Calibrated class probabilities, float32 (B, classes) on the host, for uint8 images (B, H, W, 3).

        Raises `InputError` for other arrays, and `DeviceMemoryError` where not even one image fits.
        """
        return self._compute(
            images, lambda outputs: self.loss.probabilities(self.backend, outputs / self.card.temperature)
        )

    def for_thread(self) -> "Predictor":
        """Return a predictor for another thread, with the same parameters; this one where that would be no faster."""
        backend = self.backend.for_thread()
        if backend is self.backend:
            return self
        other = copy(self)
        other.backend, other.infer, other._lock = backend, self.infer.on(backend), Lock()
        return other

    def _rehearse(self, network: Network) -> None:
        """Call the backend as `probabilities` will, on any numbers."""
        images, infer = np.zeros((1, *self.card.in_shape), np.uint8), FoldedNetwork(network)  # (1, H, W, 3)
        outputs = tta_outputs(self.backend, infer, images, self.views, self.mean, self.std)  # (1, C)
        self.loss.probabilities(self.backend, outputs / self.card.temperature)

    def _compute(self, images: np.ndarray, finish: Callable[[Array], Array]) -> np.ndarray:
        """`finish` of the network's outputs, both (B, classes), on the host."""
        check_images(images, self.card.in_shape)
        started: list[Callable[[], np.ndarray]] = []  # parts (b, classes), in order
        done = 0
        while done < len(images) or not started:
            part = images[done : done + (self.max_rows or len(images))]  # (b, H, W, 3)
            try:
                with self._lock, np.errstate(all="ignore"):
                    outputs = tta_outputs(self.backend, self.infer, part, self.views, self.mean, self.std)
                    started.append(self.backend.read_later(finish(outputs)))
                done += len(part)
            except MemoryError as error:
                if not is_cuda_error(error):
                    raise
                release_frames(error)
                if len(part) == 1:
                    raise DeviceMemoryError(
                        f"expected memory for one image on {self.backend.device_name}, found too little; use --device"
                        " cpu, or close other programs that use the GPU"
                    ) from None
                self.max_rows = len(part) // 2
        parts = [read() for read in started]
        if not all(np.isfinite(part).all() for part in parts):
            raise ModelFileError(
                f"expected finite outputs of the model {self.path}, found others: its weights are too large; train it"
                " again"
            )
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
