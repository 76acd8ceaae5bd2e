"""Training images in the memory of the device: a step then needs only row numbers and labels."""

from dataclasses import dataclass

import numpy as np

from cnn.backends.base import Array, Backend
from cnn.errors import DeviceError


@dataclass(frozen=True)
class DeviceRows:
    """A batch of images of `DeviceImages`: uint8 (B, H, W, 3), as `check_images` sees it."""

    pixels: Array  # uint8 (N, H, W, 3), on the device
    count: int  # B

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.count, *self.pixels.shape[1:]

    @property
    def ndim(self) -> int:
        return 4

    def __len__(self) -> int:
        return self.count


class DeviceImages:
    """All images of a training split, uint8 (N, H, W, 3), in the memory of a backend that augments on the device.

    Raises `DeviceError` where there is no room for them.
    """

    def __init__(self, backend: Backend, shape: tuple[int, int, int, int]) -> None:
        self._backend = backend
        try:
            self._pixels = backend.xp.empty(shape, np.uint8)  # (N, H, W, 3)
        except MemoryError as error:  # CuPy's OutOfMemoryError is one
            raise DeviceError(
                f"expected room for all {np.prod(shape) / 1e9:.2f} GB of training images on the device, found too "
                "little; use --cache none"
            ) from error

    def fill(self, first: int, images: np.ndarray) -> None:
        """Copy images (n, H, W, 3) to the rows from `first` on."""
        self._pixels[first : first + len(images)] = self._backend.upload(images)[0]

    def take(self, rows: np.ndarray) -> DeviceRows:
        """The images with row numbers `rows` (B,), which `TrainingInputs` is then given too."""
        return DeviceRows(self._pixels, len(rows))
