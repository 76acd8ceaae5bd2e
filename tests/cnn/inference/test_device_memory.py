"""The predictor on a device that works beside the host, and has too little memory."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cnn.backends.base import Array
from cnn.backends.reference import ReferenceBackend
from cnn.checkpoint import ModelCard, save_checkpoint
from cnn.errors import DeviceMemoryError
from cnn.inference.predictor import Predictor

IMAGES = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 3), np.uint8)  # (13, 8, 8, 3)
OutOfMemory = type("OutOfMemoryError", (MemoryError,), {"__module__": "cupy.cuda.memory"})


class Device(ReferenceBackend):
    """Has memory for `rows` images at a time."""

    device_name = "a small device"

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.sizes = rows, list[int]()

    def resample(self, images: Array, *arguments: Array) -> Array:
        self.sizes.append(len(images))
        if len(images) > self.rows:
            raise OutOfMemory
        return super().resample(images, *arguments)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    card = ModelCard(
        model="plain", model_options={"width": 4}, in_shape=(8, 8, 3), class_names=("a", "b", "c"), fit="pad",
        mean=(120.0,) * 3, std=(60.0,) * 3,
    )  # fmt: skip
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, card, card.build_network(ReferenceBackend(), seed=0).tensors(), {})
    return path


def test_too_large_batches_are_computed_in_parts(model: Path) -> None:
    device = Device(rows=3)
    predictor = Predictor(model, device)
    expected = Predictor(model, ReferenceBackend()).probabilities(IMAGES)
    np.testing.assert_allclose(predictor.probabilities(IMAGES), expected, rtol=1e-5)
    assert device.sizes == [13, 6, 3, 3, 3, 3, 1]
    assert predictor.max_rows == 3
    predictor.logits(IMAGES[:4])
    assert device.sizes[-2:] == [3, 1]  # it remembers


def test_not_one_image_fits(model: Path) -> None:
    with pytest.raises(DeviceMemoryError, match="expected memory for one image on a small device, found too little"):
        Predictor(model, Device(rows=0)).probabilities(IMAGES)


def test_other_memory_errors_are_not_of_the_device(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("cnn.inference.predictor.tta_outputs", fail)
    with pytest.raises(MemoryError):
        Predictor(model, Device(rows=13)).probabilities(IMAGES)


def test_threads_wait_for_their_results_at_the_same_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of two batches arrive only once both are started."""
    device, both = Device(rows=13), threading.Barrier(2, timeout=60)

    def read_later(values: Array) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            both.wait()
            return np.array(values)

        return read

    monkeypatch.setattr(device, "read_later", read_later)
    predictor = Predictor(model, device)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(predictor.logits(IMAGES))) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 2
    np.testing.assert_array_equal(*found)
