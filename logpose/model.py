"""Load a trained network and classify images from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from cnn.backends import DEVICES, PRECISIONS, pick_backend
from cnn.errors import InputError
from cnn.inference.predictor import Predictor
from cnn.inputs.checks import check_images
from jobs.errors import gpu_errors
from logpose.arguments import checked_number, checked_path, checked_text, running
from pipeline.errors import DecodeError
from pipeline.images.decode import decode_pixels
from pipeline.images.options import MAX_MAX_PIXELS, MAX_PIXELS, DecodeOptions

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

# One image: a file, an image opened with Pillow, or pixels of the model's own size, uint8 (H, W, 3).
ImageLike: TypeAlias = "str | Path | npt.NDArray[np.uint8] | PILImage"


@dataclass(frozen=True)
class Prediction:
    """The most likely class of an image.

    label        name of the class
    probability  of that class, calibrated by the model's temperature
    top          (label, probability) of the `topk` most likely classes, the most likely first

    >>> logpose.Prediction("dog", 0.93, (("dog", 0.93), ("horse", 0.05)))
    Prediction(dog 93.0%, horse 5.0%)
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]

    def __repr__(self) -> str:
        return f"Prediction({', '.join(f'{label} {probability:.1%}' for label, probability in self.top)})"

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Precision: TypeAlias = Literal["auto", "float32", "tf32", "bf16"]


class Model:
    """A trained network with its class names and preprocessing. `load` makes one.

    path         of the model file
    class_names  in the order of the outputs
    size         (H, W) of the images it takes, in pixels

    >>> logpose.load("runs/colours")
    Model(plain: 3 classes, 16×16 pixels, cpu, runs/colours/model.safetensors)
    """

    def __init__(
        self,
        path: Path,
        predictor: Predictor,
        device: Device = "auto",
        precision: Precision = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.path, self._predictor, self._device, self._precision = path, predictor, device, precision
        self._max_pixels = max_pixels
        self.class_names: tuple[str, ...] = predictor.card.class_names
        self.size: tuple[int, int] = predictor.card.in_shape[:2]

    def __repr__(self) -> str:
        card, (height, width) = self._predictor.card, self.size
        device = self._predictor.backend.name
        return f"Model({card.model}: {len(self.class_names)} classes, {width}×{height} pixels, {device}, {self.path})"

    @overload
    def predict(self, images: ImageLike, *, topk: int = 1) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is one
    @overload
    def predict(self, images: Sequence[ImageLike], *, topk: int = 1) -> list[Prediction]: ...
    def predict(self, images: ImageLike | Sequence[ImageLike], *, topk: int = 1) -> Prediction | list[Prediction]:
        """Predict the class of one image, or of each image of a list or of an array (N, H, W, 3).

        A Pillow image counts as its file does, EXIF orientation included. Only a JPEG whose pixels are already loaded
        may differ slightly: from its file, it is decoded at a reduced size.

        Raises:
            LogposeError: A file cannot be read, or an array is not uint8 of the model's size.

        >>> model = logpose.load("runs/colours")
        >>> model.predict("images/red/000.png").label in model.class_names
        True
        >>> len(model.predict(["images/red/000.png", "images/blue/000.png"], topk=2))
        2
        """
        topk = checked_number("topk", topk, 1, len(self.class_names))
        single = _is_single(images)
        probabilities = self.probabilities(images)  # (N, C)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :topk]  # (N, K)
        found = []
        for row, indices in zip(probabilities, order.tolist(), strict=True):
            top = tuple((self.class_names[index], float(row[index])) for index in indices)
            found.append(Prediction(*top[0], top))
        return found[0] if single else found

    def probabilities(self, images: ImageLike | Sequence[ImageLike]) -> npt.NDArray[np.float32]:
        """Return each class's probability, float32 (N, classes), for the images that `predict` takes.

        Raises:
            LogposeError: As for `predict`.

        >>> logpose.load("runs/colours").probabilities("images/red/000.png").shape
        (1, 3)
        """
        pixels = self._pixels(images)  # (N, H, W, 3)
        if not len(pixels):
            return np.empty((0, len(self.class_names)), np.float32)
        with gpu_errors():
            return self._predictor.probabilities(pixels)

    def _pixels(self, images: ImageLike | Sequence[ImageLike]) -> npt.NDArray[np.uint8]:
        """The images as the network takes them: uint8 (N, H, W, 3)."""
        if isinstance(images, np.ndarray) and images.ndim == 4:
            check_images(images, self._predictor.card.in_shape)
            return images
        listed = [images] if _is_single(images) else list(images)  # type: ignore[arg-type]
        pixels = np.empty((len(listed), *self.size, 3), np.uint8)  # (N, H, W, 3)
        for number, image in enumerate(listed):
            pixels[number] = self._one(image)  # type: ignore[arg-type]
        return pixels

    def _one(self, image: ImageLike) -> npt.NDArray[np.uint8]:
        """One image as the network takes it: uint8 (H, W, 3)."""
        if isinstance(image, str | os.PathLike):
            path = checked_path("images", image)
            if os.path.isdir(path):  # noqa: PTH112  # False, not an error, for a name that is too long
                raise InputError(
                    f"expected an image, found the folder {image}: classify it into a table with logpose.classify"
                )
            return self._decoded(path, str(path))
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.shape != (*self.size, 3):
                raise InputError(
                    f"expected pixels of {np.dtype(np.uint8)} {(*self.size, 3)}, found {image.dtype} {image.shape}:"
                    " give the file's path, or PIL.Image.fromarray(array), which are resized as in training"
                )
            return image
        if hasattr(image, "save") and hasattr(image, "mode"):  # Pillow's, resized by the decoder that training used
            return self._decoded(image, "a Pillow image")
        raise InputError(
            f"expected a path, an array or a Pillow image, found {type(image).__name__}: give one of these, or a list"
        )

    def _decoded(self, source: Path | PILImage, name: str) -> npt.NDArray[np.uint8]:
        card = self._predictor.card
        try:
            return decode_pixels(source, self.size, card.fit, DecodeOptions(card.depth, self._max_pixels))
        except DecodeError as error:
            raise InputError(f"expected an image, found {name}, which is {error}; check the file") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file's path and the device: a worker on the same file system loads the model again."""
        options = dict[str, Any](device=self._device, precision=self._precision, max_pixels=self._max_pixels)
        return partial(load, self.path.absolute(), **options), ()


def _is_single(images: object) -> bool:
    """Whether this is one image rather than several."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return not isinstance(images, list | tuple)


def load(
    path: str | Path,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    max_pixels: int = MAX_PIXELS,
) -> Model:
    """Load a trained network: a model file, or the folder of a training.

    A model file never runs code: a network of your own must be registered before, by importing its module.
    `precision` is that of a GPU's products and feature maps; "auto" is bf16 if the card has it.
    Images of more than `max_pixels` are refused.

    Raises:
        LogposeError: The file is missing, damaged, or of a network that is not registered.

    >>> model = logpose.load("runs/colours")
    >>> model.class_names, model.size
    (('blue', 'green', 'red'), (16, 16))
    """
    file = checked_path("path", path)
    checked_text("device", device, DEVICES)
    checked_text("precision", precision, PRECISIONS)
    max_pixels = checked_number("max_pixels", max_pixels, 1, MAX_MAX_PIXELS)
    with running(quiet=True):
        file = file / "model.safetensors" if file.is_dir() else file
        return Model(file, Predictor(file, pick_backend(device, precision=precision)), device, precision, max_pixels)
